"""Multiple choice: find the letter that a solution chooses."""

import re
import unicodedata
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from rlt_core.grading import markers
from rlt_core.grading.values import words

_DEFAULT_CHOICES = 4
_MARKUP = re.compile(r"\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox|rm|bf|left|right)(?![A-Za-z])|\\.|"
                     r"[*_`${}]")  # fmt: skip
_LEAD = re.compile(
    r"(?i:(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?:? |it(?:'s| is) )?"
    r"(?:[(\[] ?(?P<bracketed>[A-Za-z]) ?[)\]]|(?P<lower>[a-z])(?=\)|\.?$)|"
    r"(?P<upper>[A-Z])(?=[).:,/&]|$| (?:because|since|is|as|and|or|nor|[-\u2013\u2014]) ?))"
)
_ANOTHER = re.compile(r"\W*(?:and|or|nor|[,/&])\W*[A-Z]\b")
_DENIED = re.compile(
    r"\W* (?i:(?:is|are|was)(?:n't|(?: clearly| also)? "
    r"(?:not|wrong|incorrect|false|ruled out|eliminated|excluded))|"
    r"(?:can|could|must|should) be (?:ruled|eliminated|excluded|rejected|discarded)|"
    r"(?:ca|can|could|does|do)(?:n't| ?not)|fails)\b"
)
_STANDING = re.compile(
    r"(?<![\w'\\^])(?<![Nn]ot )(?!A (?!or |and |nor )[a-z])([A-Z])(?![\w'^=+]| ?=)"
)
_LAST = re.compile(
    r"(?<![\w/&,(])(?<![A-Z/&] )(?<![A-Z], )(?<!n't )(?<!\b(?i:and|nor|not) )(?<!\bor )"
    r"\(?([A-Z])[)*.!。]{0,3}$"
)
_SAID = re.compile(
    r"(?:\b(?i:answer|option|choice|choose|pick|select)\b|答案[是为]?|选)"
    r"(?i:\s{1,3}(?:is|would be|must be|clearly|thus|therefore|definitely|option|"
    r"choice|answer|the|correct|letter)){0,5}[\s:]{0,4}"
    r"(?:[(\[]([A-Za-z])[)\]]|([A-Z])(?![\w']))|"
    r"(?<![\w/&,(])(?<![A-Z], )(?<!and )(?<!or )\(?([A-Z])\)? (?:is|must be) (?:the )?"
    r"(?:correct|right|best|answer)\b"
)


def _options(metadata: Mapping[str, Any]) -> list[str]:
    """Return the texts of the choices that the metadata's `choices` lists, empty ones where it is a
    number; four by default."""
    choices = metadata.get("choices") or _DEFAULT_CHOICES
    try:
        texts = [""] * choices if isinstance(choices, int) else [*map(str, choices)]
    except TypeError:
        texts = [""] * _DEFAULT_CHOICES
    return texts[: len(ascii_uppercase)]


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", text).split())


def _leading(text: str, letters: str) -> str | None:
    """Return the letter at the start of `B`, `(b)`, `Option B`, `B) 3 m/s`; None if another one
    follows."""
    match = _LEAD.match(_plain(text))
    if match is None:
        return None
    group = str(match.lastgroup)
    letter = match[group].upper()
    end = match.end(group)
    other = _ANOTHER.match(_plain(text), end) or _DENIED.match(_plain(text), end)
    return None if other or letter not in letters else letter


def _chosen(text: str, letters: str) -> str | None:
    """Return the leading letter, else the only capital letter of a choice that is a word."""
    plain = _plain(text)
    standing = {
        match[1]
        for match in _STANDING.finditer(plain)
        if match[1] in letters and not markers.denies(plain[: match.start()])
    }
    return _leading(text, letters) or (standing.pop() if len(standing) == 1 else None)


def _first(text: str, lines: list[str], letters: str) -> str | None:
    """Return the letter at the start of a text, or alone in its first line; None if other lines
    start with others, as in a list of the choices."""
    is_alone = len(_plain(lines[0])) < 5
    first = _leading(text, letters) or (_leading(lines[0], letters) if is_alone else None)
    peers = [line for line in lines[1:] if len(_plain(line)) < 5 or not is_alone]
    return first if {_leading(line, letters) for line in peers} <= {None, first} else None


def choice_letter(text: str, metadata: Mapping[str, Any]) -> str | None:
    """Return the letter that a solution chooses, or whose text in the metadata it gives as its
    answer."""
    options = _options(metadata)
    letters = ascii_uppercase[: len(options)]
    text = unicodedata.normalize("NFKC", markers.after_thought(text))
    said = markers.marked_answer(text) or text
    if any(options) and len(said) < markers.MAX_ANSWER_CHARS:
        chosen = [
            letter
            for letter, option in zip(letters, options, strict=True)
            if len(option) > 1 and words(option).parts == words(said).parts
        ]
        if len(chosen) == 1:
            return chosen[0]
    return _letter(text, letters)


def _letter(text: str, letters: str) -> str | None:
    """Return the letter in a box, else in the last line `Answer: …`, else at the start, in the text
    (`the answer is C`, `option C`) or in the last line."""
    box, line = markers.last_box(text), markers.answer_line(text)
    if box and not box[2]:
        return None
    if box and (letter := _leading(box[2], letters)):
        return letter
    if line:
        return _chosen(line[1], letters)
    marked = None if box else markers.marked_answer(text)
    if marked and (letter := _chosen(marked, letters)):
        return letter
    lines = [each for each in text.splitlines() if each.strip()] or [""]
    if len(text) < markers.MAX_ANSWER_CHARS and (letter := _first(text, lines, letters)):
        return letter
    plain = _plain(text)
    said = [
        found
        for match in _SAID.finditer(plain)
        if (found := str(match[match.lastindex or 1]).upper()) in letters
        and not markers.denies(plain[: match.start()])
        and not _ANOTHER.match(plain, match.end())
        and not _DENIED.match(plain, match.end())
    ]
    if said:
        return said[-1]
    lines = [each for each in text[-markers.TAIL_CHARS :].splitlines() if each.strip()] or [""]
    ending = _plain(lines[-1])
    last = _LAST.search(ending)
    if last and last[1] in letters and not markers.denies(ending[: last.start(1)]):
        return last[1]
    listed = len(lines) > 1 and _leading(lines[-2], letters)  # the choices, repeated
    return None if listed else _leading(lines[-1], letters)
