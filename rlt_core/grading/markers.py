r"""Where a text says its answer: the one reader of answer markers, for golds and solutions alike.

Strong markers are the last \boxed{x} or \fbox{x}, `#### x`, `Answer: x` and <answer>x</answer>; of
several kinds, the one furthest back in the text counts. `The answer is x` is read where there is no
strong one. All of it is linear in the text's length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rlt_core.grading.normalize import closing

MAX_ANSWER_CHARS = 1000
"""A longer answer is no answer: it is unparsable, and no verifier gets to see it."""
_TAIL_CHARS = 4 * MAX_ANSWER_CHARS

_THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning)>|<\|end_of_thought\|>")
_THOUGHT = re.compile(r"<(?:think|thinking|thought|reasoning)>|<\|begin_of_thought\|>")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BOX_TOKEN = re.compile(r"[^\s${}\\,;]+")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S.*)")
_HEADING = re.compile(r"\W*(?:step|part|case|final|answer|solution|conclusion|verif|summar|check)|"
                      r"\d+[.):] ", re.I)  # fmt: skip
_ANSWER = re.compile(
    r"\banswer(?: \([^()\n]{0,40}\))?[ \t*_]*[:=][ \t*_]*|"
    r"^[ \t#*_>]*(?:the )?(?:final |correct )?answer[ \t*_]*\n",
    re.I | re.M,
)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.I | re.S)
_SAID = re.compile(
    r"\banswers?\b[^.\n:=]{0,60}?\b(?:is|are|be|equals|was)\b(?: ?:)?[ \t]*\n?[ \t]*(\S[^\n]*)",
    re.I,
)
_SENTENCE_END = re.compile(r"\.[*_]*(?:\s+(?=[A-Z\\$*])|\s*$)|,?\s(?:because|since|which)\b")
_COMMANDS = re.compile(r"\\(?:text|mbox|mathrm)\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}|\b(?:so|it|is|we|if|as|to|of|by)\b", re.I)
_INLINE = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[(.+?)\\\]", re.S)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>[-+]?)(?P<top>{_DIGITS})(?:/(?P<bottom>{_DIGITS}))?(?!\w)"
)
_JOINED = re.compile(r"[ ,;]*(?:,|;| and | or )[ ,;]*")


def is_bare(text: str) -> bool:
    """Whether a text is mathematics alone: one line without words."""
    return "\n" not in text and _WORD.search(_COMMANDS.sub(" ", text)) is None


@dataclass(frozen=True)
class Box:
    """The last box of a text; of boxes joined by `and`, `or` or a comma, the content of all."""

    start: int
    end: int
    content: str
    """Empty if the box is, or does not end."""


def last_box(text: str) -> Box | None:
    """The last box of a text, None without one."""
    starts = list(_BOX.finditer(text))
    if not starts:
        return None
    found: list[str] = []
    limit = len(text)
    for match in reversed(starts):
        end, content = _box(text, match.end(), limit)
        between = text[end:limit]
        if found and (len(between) > 40 or not _joins(between)):
            break
        found.insert(0, content)
        if not content:
            return Box(match.start(), limit, "")
        limit = match.start()
    last_end = _box(text, starts[-1].end(), len(text))[0]
    return Box(starts[-1].start(), last_end, ", ".join(found))


def _box(text: str, start: int, limit: int) -> tuple[int, str]:
    """End and content of the box whose argument is at `start`; empty if it does not end."""
    if text[start : start + 1] == "{":
        end = closing(text, start, limit)
        return (end + 1, text[start + 1 : end].strip()) if end > 0 else (limit, "")
    token = _BOX_TOKEN.match(text, start, limit)
    return (token.end(), token[0].rstrip(".")) if token else (limit, "")


def _joins(between: str) -> bool:
    rest = re.sub(r"[\s$\\()\[\]{},;&.*]|text|quad", "", between)
    return rest in ("and", "or") or (not rest and bool(re.search("[,;]", between)))


def _line(text: str, start: int) -> str:
    r"""The answer that begins at `start`: the rest of its line, or the next line that is not blank;
    more lines while an environment or display of LaTeX is open."""
    rest = text[start : start + _TAIL_CHARS].lstrip()
    line, *more = rest.split("\n") or [""]
    for following in more:
        opened = line.count(r"\begin{") - line.count(r"\end{") + line.count(r"\[")
        if opened <= line.count(r"\]") and line.count("$$") % 2 == 0 and line.strip("*_ `"):
            break
        line += " " + following
    return line


def _clean(content: str) -> str:
    content = content.strip()
    said = _SAID.search(content)
    content = said[1] if said else content
    end = _SENTENCE_END.search(content)
    content = content[: end.start()] if end and end.start() else content
    bold = re.match(r"\*\*([^*\n]+)\*\*", content)
    return (bold[1] if bold else content).strip().strip("*_`").strip()


def answer_line(text: str) -> tuple[int, str] | None:
    """Position and content of the last `Answer: …`; None without one outside boxes."""
    box = last_box(text)
    for match in reversed(list(_ANSWER.finditer(text))):
        if box and box.start < match.start() < box.end:
            continue
        content = _clean(_line(text, match.end()))
        return (match.start(), content) if content and not _BOX.search(content) else None
    return None


def marked_answer(text: str) -> str | None:
    """What a text marks as its answer; None without a marker, empty where the last one holds
    nothing (a box that does not end). Only what follows a closed thought is read."""
    text = after_thought(text)
    found: list[tuple[int, str]] = []
    box = last_box(text)
    if box is not None:
        if not box.content:
            return ""
        found.append((box.start, box.content))
    written = len(text.rstrip())
    for hashes in _HASHES.finditer(text):
        content, last = hashes[1].strip(), hashes.end() >= written
        if is_bare(content) or (last and not _HEADING.match(content)):
            found.append((hashes.start(), content.strip("*_ ")))
    line = answer_line(text)
    if line is not None:
        found.append(line)
    for tagged in _TAGGED.finditer(text):
        if not _BOX.search(tagged[1]):
            found.append((tagged.start(), _clean(tagged[1])))
    if found:
        return max(found, key=lambda each: each[0])[1]
    said = [match[1] for match in _SAID.finditer(text)]
    return _clean(said[-1]) if said else None


def after_thought(text: str) -> str:
    """What follows the last closed thought; nothing if a thought is open."""
    end = 0
    for closed in _THOUGHT_END.finditer(text):
        end = closed.end()
    return "" if _THOUGHT.search(text, end) else text[end:]


def read_answer(text: str) -> str | None:
    """The answer of a solution: what it marks, else the mathematics that it is, else the last
    mathematics in it. None if there is none, or if it is too long."""
    answer = marked_answer(text)
    if answer is None:
        text = after_thought(text).strip()
        bare = len(text) <= MAX_ANSWER_CHARS and is_bare(text)
        answer = text if bare else last_mathematics(text)
    return answer if answer and len(answer) <= MAX_ANSWER_CHARS else None


def mathematics(text: str) -> list[str]:
    """The formulas and numbers in prose, in order; those joined by `and`, `or` or a comma are
    one."""
    spans = [
        (match.start(), match.end(), next(filter(None, match.groups())))
        for match in _INLINE.finditer(text)
        if is_bare(match[0])
    ]
    covered = [(start, end) for start, end, _ in spans]
    blank = text
    for start, end in covered:
        blank = blank[:start] + "x" * (end - start) + blank[end:]
    spans += [(m.start(), m.end(), m[0]) for m in _NUMBER.finditer(_plain(blank))]
    found: list[tuple[int, str]] = []
    for start, end, content in sorted(spans):
        if found and _JOINED.fullmatch(text, found[-1][0], start):
            content = f"{found.pop()[1]}, {content}"
        found.append((end, content))
    return [content for _, content in found]


def last_mathematics(text: str) -> str | None:
    """The last formula or number in prose."""
    found = mathematics(text[-_TAIL_CHARS:])
    return found[-1] if found else None


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > MAX_ANSWER_CHARS:
        return None
    top = Fraction(match["top"].replace(",", ""))
    bottom = Fraction((match["bottom"] or "1").replace(",", ""))
    if bottom == 0:
        return None
    return (-top if match["sign"] == "-" else top) / bottom


def _plain(text: str) -> str:
    """The text, as long as before, with the minus sign of typography made ASCII and without `$`."""
    return text.replace("\N{MINUS SIGN}", "-").replace("$", " ").replace("\\", " ")


def last_number(text: str) -> Fraction | None:
    """The last number in the text that does not touch a letter."""
    found = None
    for match in _NUMBER.finditer(_plain(text)):
        found = match
    return None if found is None else _value(found)
