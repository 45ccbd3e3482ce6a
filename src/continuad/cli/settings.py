"""`--set training.epochs=10`: text to settings, by the types that the settings' dataclass declares."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from continuad.errors import SettingsError

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "none"}


def parse_settings(pairs: Sequence[str], settings: Any) -> dict[str, Any]:
    """Turn "name=value" and "group.name=value" into nested changes for `Method.configure`.

    Args:
        pairs: as the user wrote them; of two for one setting the later counts.
        settings: the frozen dataclass that they change.

    Raises:
        SettingsError: a pair has no "=", a name is unknown, or a value is of another type.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise SettingsError(f"--set {pair} has no value.", "Write --set NAME=VALUE.")
        *groups, name = key.strip().split(".")
        group, place = type(settings), changes
        for each in groups:
            group, place = _declared(group, each, key), place.setdefault(each, {})
        kind = _declared(group, name, key)
        try:
            place[name] = _parse(text.strip(), kind)
        except (ValueError, KeyError) as error:
            raise SettingsError(f"--set {pair}: {text!r} will not do.", f"Give {_describe(kind)}.") from error
    return changes


def nested(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn "group.name=value" into nested changes, each value as TOML has it, or else as text.

    For settings of several methods, whose types are not known here.

    Raises:
        SettingsError: a pair has no "=", or a name is set and used as a group as well.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise SettingsError(f"--set {pair} has no value.", "Write --set NAME=VALUE.")
        *groups, name = key.strip().split(".")
        place = changes
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise SettingsError(f"--set {pair} is at odds with another --set.", "Give one of them.")
        try:
            place[name] = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            place[name] = text.strip()
    return changes


def _declared(group: Any, name: str, key: str) -> Any:
    """Return the type that a settings class declares for `name`; `key` is for messages."""
    known = get_type_hints(group) if is_dataclass(group) else {}
    if name not in known:
        hint = f"Choose from: {', '.join(known)}." if known else "Leave out what follows the last dot."
        raise SettingsError(f"There is no setting {key!r}.", hint)
    return known[name]


def _parse(text: str, kind: Any) -> Any:
    """Read a value of a type; ValueError or KeyError if it is none."""
    if is_dataclass(kind):
        raise ValueError(text)
    if kind is bool:
        return _BOOLEANS[text.lower()]
    if kind is NoneType:
        return {"none": None}[text.lower()]
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}[text]
    if get_origin(kind) is tuple:
        return tuple(_parse(part.strip(), get_args(kind)[0]) for part in text.split(",") if part.strip())
    if NoneType in get_args(kind):
        if text.lower() == "none":
            return None
        (kind,) = (each for each in get_args(kind) if each is not NoneType)
    return kind(text)


def _describe(kind: Any) -> str:
    """Say what a value must look like."""
    if is_dataclass(kind):
        return f"one of its own settings a value: {', '.join(get_type_hints(kind))}"
    if get_origin(kind) is Literal:
        return " or ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"{_NAMES[get_args(kind)[0]]}, or several with commas between"
    return _NAMES[kind] if kind in _NAMES else " or ".join(_describe(each) for each in get_args(kind))
