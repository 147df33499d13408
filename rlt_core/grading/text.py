"""Reading a final answer out of text: markers, numbers and letters. Linear in the text's length."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_ANSWER_CHARS = 1000
"""A longer answer is no answer: it is unparsable, and no verifier gets to see it."""

_HASHES = re.compile(r"####[ \t]*(\S.*)")
_ANSWER_LINE = re.compile(r"^[ \t*_#>]*(?:final )?answer[ \t*_]*[:=][ \t*_]*(\S.*)$", re.I | re.M)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]?)(?P<top>{_DIGITS})(?:/(?P<bottom>{_DIGITS}))?(?!\w)"
)
_LETTER = re.compile(r"\(?\b([A-Z])\b\)?")
_SAID_LETTER = re.compile(r"\banswer(?: is|:)[\s*:]*\(?([A-Z])\b", re.I)


def boxed(text: str) -> str | None:
    r"""Content of the last \boxed{…} whose braces are balanced."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len(r"\boxed"), len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[start + len(r"\boxed{") : position].strip() or None
    return None


def hashed(text: str) -> str | None:
    """What follows the last `####` (GSM8K's marker) on its line."""
    found = None
    for match in _HASHES.finditer(text):
        found = match.group(1).strip()
    return found


def marked_answer(text: str) -> str | None:
    r"""What a text marks as its answer: the last \boxed{x}, else the last line `#### x` or
    `Answer: x`. The box goes first because models write `####` headings too."""
    box = boxed(text)
    if box is not None:
        return box
    found = None
    for pattern in (_HASHES, _ANSWER_LINE):
        for match in pattern.finditer(text):
            if found is None or match.start() > found.start():
                found = match
    return None if found is None else found.group(1).strip().strip("*_").strip() or None


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > MAX_ANSWER_CHARS:
        return None
    top = Fraction(match["top"].replace(",", ""))
    bottom = Fraction((match["bottom"] or "1").replace(",", ""))
    if bottom == 0:
        return None
    return (-top if match["sign"] == "-" else top) / bottom


def _plain(text: str) -> str:
    r"""The text with the minus sign of typography made ASCII, without `$` and `\$`."""
    return text.replace("\N{MINUS SIGN}", "-").replace("\\$", "").replace("$", "")


def parse_number(text: str) -> Fraction | None:
    """The text as one exact number: `-7`, `1,234.50`, `3/4`; `$`, `%` and a full stop may stand
    around it. None if it is anything else."""
    match = _NUMBER.fullmatch(_plain(text).strip().removesuffix(".").removesuffix("%").strip())
    return None if match is None else _value(match)


def last_number(text: str) -> Fraction | None:
    """The last number in the text that does not touch a letter."""
    found = None
    for match in _NUMBER.finditer(_plain(text)):
        found = match
    return None if found is None else _value(found)


def choice_letter(text: str) -> str | None:
    """The letter that a text chooses: marked, alone, or after `answer is`."""
    marked = marked_answer(text)
    if marked is not None:
        match = _LETTER.search(marked)
        return None if match is None else match.group(1)
    alone = _LETTER.fullmatch(text.strip().removesuffix("."))
    if alone is not None:
        return alone.group(1)
    said = _SAID_LETTER.findall(text)
    return said[-1].upper() if said else None
