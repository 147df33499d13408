"""Multiple choice: find the letter that a solution chooses."""

import json
import re
import unicodedata
from string import ascii_uppercase

from rlt_core.grading import markers

_DEFAULT_CHOICES = 4
_MARKUP = re.compile(r"\\(?:text(?:bf|rm|it)?|mathrm|mathbf|mbox|rm|bf|left|right)(?![A-Za-z])|\\.|"
                     r"[*_`${}]")  # fmt: skip
_LEAD = re.compile(
    r"(?i:(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?:? |it(?:'s| is) )?"
    r"(?:[(\[] ?(?P<bracketed>[A-Za-z]) ?[)\]]|(?P<lower>[a-z])(?=\)|\.?$)|"
    r"(?P<upper>[A-Z])(?=[).:,/&]|$| (?:because|since|is|as|and|or|nor|-|\N{EN DASH}) ?))"
)
_ANOTHER = re.compile(r"\W*(?:and|or|nor|[,/&])\W*[A-Z]\b")
_DENIED = re.compile(r"\W* (?i:is|are|was)(?i:n't| not| wrong| incorrect| false)\b")
_STANDING = re.compile(
    r"(?<![\w'\\^])(?<![Nn]ot )(?!A (?!or |and |nor )[a-z])([A-Z])(?![\w'^=+]| ?=)"
)
_LAST = re.compile(
    r"(?<![\w/&,(])(?<![A-Z/&] )(?<![A-Z], )(?<!n't )(?<!\b(?i:and|nor|not) )(?<!\bor )"
    r"\(?([A-Z])[)*.!。]{0,3}$"
)
_SAID = re.compile(
    r"(?:\b(?i:answer|option|choice|choose|pick|select)\b|答案[是为]?)"
    r"(?i:\s{1,3}(?:is|would be|must be|clearly|thus|therefore|definitely|option|"
    r"choice|answer|the|correct|letter)){0,5}[\s:]{0,4}"
    r"(?:[(\[]([A-Za-z])[)\]]|([A-Z])(?![\w']))"
)


def _letters(metadata: str | None) -> str:
    """Return A-D, or as many letters as the metadata's `choices` says."""
    try:
        choices = json.loads(metadata or "{}").get("choices", _DEFAULT_CHOICES)
        return ascii_uppercase[: choices if isinstance(choices, int) else len(choices)]
    except (ValueError, TypeError, AttributeError):
        return ascii_uppercase[:_DEFAULT_CHOICES]


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
    standing = {letter for letter in _STANDING.findall(_plain(text)) if letter in letters}
    return _leading(text, letters) or (standing.pop() if len(standing) == 1 else None)


def choice_letter(text: str, metadata: str | None = None) -> str | None:
    """Return the letter that a solution chooses: in a box, else in its last line `Answer: …`, else
    at its start, in its text (`the answer is C`, `option C`) or in its last line."""
    letters = _letters(metadata)
    text = unicodedata.normalize("NFKC", markers.after_thought(text))
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
    if len(text) < markers.MAX_ANSWER_CHARS and (letter := _leading(text, letters)):
        return letter
    plain = _plain(text)
    said = [
        found
        for match in _SAID.finditer(plain)
        if (found := (match[1] or match[2]).upper()) in letters
        and not _ANOTHER.match(plain, match.end())
        and not _DENIED.match(plain, match.end())
    ]
    if said:
        return said[-1]
    lines = [each for each in text[-markers.TAIL_CHARS :].splitlines() if each.strip()] or [""]
    last = _LAST.search(_plain(lines[-1]))
    if last and last[1] in letters:
        return last[1]
    listed = len(lines) > 1 and _leading(lines[-2], letters)  # the choices, repeated
    return None if listed else _leading(lines[-1], letters)
