"""Addresses without the secrets in them."""

from __future__ import annotations

import re

_USER = re.compile(r"^([a-z][a-z0-9+.-]*://).*@", re.IGNORECASE | re.DOTALL)
_SECRET = re.compile(
    r"((?:user|login|account|pass|pwd|pw|token|key|auth|secret)[a-z]*=)[^&/?#;]*?(?=$|[&/?#;]|_[a-z]+=)",
    re.IGNORECASE,
)


def without_credentials(address: str) -> str:
    """Return an address that may be shown: user and password, also those in path and query, become ***.

    Rather too much is hidden than too little: everything up to the last @, for passwords may hold one.
    """
    return _SECRET.sub(r"\1***", _USER.sub(r"\1***@", address))
