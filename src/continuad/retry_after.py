"""How long a server asks to be left alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, at least 0 (RFC 9110, section 10.2.3).

    Args:
        value: seconds or a date; None where there is no such header.

    Returns:
        None if there is nothing that could be read.
    """
    if value is None:
        return None
    if re.fullmatch(r"[0-9]{1,15}", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:  # what "-0000" means
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
