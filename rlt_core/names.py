"""Names and paths from outside (a manifest, a listing, a config) that become part of a path."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator

_REFUSED = r"\\\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""Backslashes, control characters, those that turn the direction of text, halves of a character."""
_PART = rf"(?!\.\.?(?:/|\Z)|[A-Za-z]:)[^/{_REFUSED}]{{1,255}}"
_RELATIVE = re.compile(rf"{_PART}(?:/{_PART})*")


def is_relative(path: str) -> bool:
    """Return whether a path stays below the folder that it is relative to, on every system."""
    return bool(_RELATIVE.fullmatch(path))


def _relative(path: str) -> str:
    if not is_relative(path):
        raise ValueError(
            f"{path!r}: a path is relative, without `..`, backslash, drive or control character"
        )
    return path


def _name(name: str) -> str:
    if "/" in name or not is_relative(name):
        raise ValueError(
            f"{name!r}: a name becomes part of a path; it has no slash, backslash or control "
            "character and is not `..`"
        )
    return name


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown name: the nearest known one, or all of them."""
    names = sorted(names)
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"


RelativePath = Annotated[str, AfterValidator(_relative)]
Name = Annotated[str, AfterValidator(_name)]
