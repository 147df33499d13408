r"""Find the answer in a text: the one reader of answer markers, for right answers and solutions.

Strong markers are the last \boxed{x} or \fbox{x}, `#### x`, `Answer: x` and <answer>x</answer>; the
last of them in the text counts. `The answer is x` is read if there is no strong marker. Everything
is linear in the text's length.
"""

import re
from collections import deque
from fractions import Fraction

from rlt_core.grading.normalize import closing

MAX_ANSWER_CHARS = 1000
"""A longer answer is unparsable, and no verifier gets it."""
TAIL_CHARS = 4 * MAX_ANSWER_CHARS
NEAR_CHARS = 80
"""Characters before an answer in which a denial counts."""

THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning)>|<\|end_of_thought\|>")
THOUGHT = re.compile(r"<(?:think|thinking|thought|reasoning)>|<\|begin_of_thought\|>")
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
BOX_TOKEN = re.compile(r"[^\s${}\\,;]+")
HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*(\S.*)")
HEADING = re.compile(r"\W*(?:step|part|case|final|answer|solution|conclusion|verif|summar|check)|"
                     r"\d+[.):] ", re.I)  # fmt: skip
ANSWER = re.compile(
    r"(?<![A-Za-z])answer(?: \([^()\n]{0,40}\))?[ \t*_\"']*[:=](?:[ \t*_\"'}]|</\w{1,9}>)*|"
    r"答案\s*(?:是|为|[:\uff1a=])|"
    r"^[ \t#*_>]*(?:the )?(?:final |correct )?answer[ \t*_]*\n(?:[-=]{3,}\n)?",
    re.I | re.M,
)
TAGGED = re.compile(
    r"<(?:final_)?answer>((?:(?!<(?:final_)?answer>).)*?)</(?:final_)?answer>", re.I | re.S
)
SAID = re.compile(
    r"\banswers?\b[^.\n:=]{0,60}?\b(?:is|are|be|equals|was)\b"
    r"(?:,? (?:therefore|thus|then|hence|clearly|simply|just|indeed|of course),?)?"
    r"(?: ?:)?[ \t]*(?=\s{0,8}[^\s:])",
    re.I,
)
SENTENCE_END = re.compile(
    r"\.[*_]*(?:\s+(?=[A-Z\\$*])|\s*$)|,?\s\(?(?:because|since|which|as)\b|"
    r",\s*(?:not|I (?:think|believe|guess|hope))\b|\s\((?:see|not|rounded)\b|\?\s*$|<\||</s>"
)
BULLET = re.compile(r"[-*>•] +")
LIMITED = re.compile(
    r"\b(?:not|never|cannot|neither|wrong|incorrect|except|(?:any|every)thing but|all but|almost|"
    r"nearly|up to|least|most|more|less|fewer|between|over|under)\b|n['\u2019]t\b",
    re.I,
)
"""Words in prose by which a number in it is not the answer."""
DENIED = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|no longer|by no means|except|wrong|incorrect|"
    r"eliminate|exclude|reject|avoid|least likely|rule out|(?:other|rather) than|instead of|"
    r"(?:any|every)thing but|all but)\b|n['\u2019]t\b|≠)"
    r"(?: (?:be|is|was|equal|to|the|an?|answer|option|choice|choose|pick|just|really|even))*"
    r"[^\w.,:;?!\n]*$",
    re.I,
)
"""End of a text after which an answer is denied: `is not equal to `."""
CORRECTED = re.compile(
    r"(?:, (?:and |but )?not|\(not|\brather than|\binstead of) [^\w.,:;?!\n]*$", re.I
)
"""The same, where the text before gives the answer: `43, not 42`."""
REFUTED = re.compile(
    r"[^\w.;?!\n]*(?:but )?(?:(?:that|this|it|which) )?"
    r"(?:fails\b|(?:is|are|was|does|do|did|ca|can|could|would)(?:(?:n['\u2019]t| ?not) (?:be )?"
    r"(?:(?:the |an? )?(?:correct|right|final|valid|possible|answer|solution)|work|fit|satisfy)|"
    r" (?:wrong|incorrect|false|impossible|extraneous|ruled out))\b)",
    re.I,
)
"""Beginning of a text that denies the answer before it: ` is wrong`."""
COMMANDS = re.compile(r"\\(?:text|mbox|mathrm)\{[^{}]*\}|\\[A-Za-z]+")
WORD = re.compile(r"[^\W\d_]{3,}|\b(?:so|it|is|we|if|as|to|of|by)\b", re.I)
INLINE = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$([^$\n]+)\$|\\\(([^\n]+?)\\\)|\\\[(.+?)\\\]", re.S)
DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++"
NUMBER = re.compile(rf"(?<![\w.])(?P<sign>[-+]?)(?P<top>{DIGITS})(?:/(?P<bottom>{DIGITS}))?(?!\w)")
JOINED = re.compile(r"[ ,;]*(?:,|;| and | or )[ ,;]*")


def is_bare(text: str) -> bool:
    """Return whether a text is one line of mathematics without words."""
    return "\n" not in text and WORD.search(COMMANDS.sub(" ", text)) is None


def after_thought(text: str) -> str:
    """Return what follows the last closed thought; nothing if a thought is open."""
    end = 0
    for closed in THOUGHT_END.finditer(text):
        end = closed.end()
    return "" if THOUGHT.search(text, end) else text[end:]


# ---------------------------------------------------------------- markers
def last_box(text: str) -> tuple[int, int, str] | None:
    """Return start, end and content of the last box of a text; the content is empty if the box is
    empty, not closed or denied, and that of all for boxes joined by `and`, `or` or a comma."""
    found: list[tuple[int, int, str]] = []
    limit = len(text)
    for match in reversed(list(BOX.finditer(text))):
        end, content = _box(text, match.end(), limit)
        between = text[end:limit]
        if found and (len(between) > 40 or not _joins(between)):
            break
        if not content:
            return match.start(), limit, ""
        found.insert(0, (match.start(), end, content))
        limit = match.start()
    if not found:
        return None
    start, end, _ = found[-1]
    return start, end, "" if is_denied(text, start, end) else ", ".join(each[2] for each in found)


def _box(text: str, start: int, limit: int) -> tuple[int, str]:
    """Return end and content of the box whose argument is at `start`; empty if it is not closed."""
    if text[start : start + 1] == "{":
        end = closing(text, start, limit)
        return (end + 1, text[start + 1 : end].strip()) if end > 0 else (limit, "")
    token = BOX_TOKEN.match(text, start, limit)
    return (token.end(), token[0].rstrip(".")) if token else (limit, "")


def _joins(between: str) -> bool:
    rest = re.sub(r"[\s$\\()\[\]{},;&.*]|text|quad", "", between)
    return rest in ("and", "or") or (not rest and bool(re.search("[,;]", between)))


def answer_line(text: str) -> tuple[int, str] | None:
    """Return position and content of the last `Answer: …` outside boxes; None if there is none."""
    box = last_box(text)
    for match in reversed(list(ANSWER.finditer(text))):
        if box and box[0] < match.start() < box[1]:
            continue
        content = _clean(_line(text, match.end()))
        return (match.start(), content) if content and not BOX.search(content) else None
    return None


def _line(text: str, start: int) -> str:
    r"""Return the answer that begins at `start`: the rest of its line or the next line that is not
    blank, with further lines while a LaTeX environment or display is open."""
    rest = text[start : start + TAIL_CHARS]
    line, *more = rest.lstrip().split("\n")
    if "\n" in text[max(0, start - 1) : start] + rest[: len(rest) - len(rest.lstrip())]:
        line = BULLET.sub("", line, count=1) if BULLET.match(line) else line
    for following in more:
        opened = line.count(r"\begin{") - line.count(r"\end{") + line.count(r"\[")
        if opened <= line.count(r"\]") and line.count("$$") % 2 == 0 and line.strip("*_ `"):
            break
        line += " " + following
    return line


def _clean(content: str) -> str:
    content = content.strip()
    said = SAID.search(content)
    content = content[said.end() :].strip() if said else content
    end = SENTENCE_END.search(content)
    content = content[: end.start()] if end and end.start() else content
    bold = re.match(r"\*\*([^*\n]+)\*\*", content)
    content = (bold[1] if bold else content).strip().strip('*_`"“”。').strip()
    content = re.sub(r"(?:[\"']?,\s*[\"']\w+[\"']\s*:.*|\"[,}\s]*|'[,}]+)$", "", content)
    return content.removesuffix("$") if content.count("$") % 2 else content


def marked_answer(text: str) -> str | None:
    """Return what a text marks as its answer, after any closed thought.

    None without a marker; empty if the last box is empty or not closed.
    """
    text = after_thought(text)
    box, line = last_box(text), answer_line(text)
    if box and not box[2]:
        return ""
    found = [(box[0], box[2])] if box else []
    written = len(text.rstrip())
    for hashes in HASHES.finditer(text):
        content, last = hashes[1].strip(), hashes.end() >= written
        if is_bare(content) or (last and not HEADING.match(content)):
            found.append((hashes.start(), content.strip("*_ ")))
    found += [line] if line else []
    for tagged in TAGGED.finditer(text):
        if not BOX.search(tagged[1]):
            found.append((tagged.start(), _clean(tagged[1])))
    if found:
        return max(found, key=lambda each: each[0])[1]
    said = next(iter(deque(SAID.finditer(text), maxlen=1)), None)
    if said is None or is_denied(text, said.end(), said.end()):
        return None
    content = _clean(_line(text, said.end()))
    return None if re.match(r"(?:not|never)\b", content) else content


def denies(before: str) -> bool:
    """Return whether a text ends in words that deny the answer after it."""
    return DENIED.search(before[-NEAR_CHARS:]) is not None


def is_denied(text: str, start: int, end: int) -> bool:
    """Return whether the words around an answer say that it is none."""
    return denies(text[max(0, start - NEAR_CHARS) : start]) or bool(REFUTED.match(text, end))


# ---------------------------------------------------------------- mathematics in prose
def read_answer(text: str) -> str | None:
    """Return the answer of a solution: what it marks, else the mathematics that it consists of,
    else the last mathematics in it. None if there is none, or if it is too long."""
    answer = marked_answer(text)
    if answer is None:
        text = after_thought(text).strip().lstrip("#=>\N{THEREFORE} ")
        if len(text) <= MAX_ANSWER_CHARS and is_bare(text):
            answer = text
        else:
            answer = next(reversed(mathematics(text[-TAIL_CHARS:])), None)
    return answer if answer and len(answer) <= MAX_ANSWER_CHARS else None


def mathematics(text: str) -> list[str]:
    """Return the formulas and numbers in prose, in order. Those joined by `and`, `or` or a comma
    are one; one that the words around it deny is empty."""
    spans = [
        (match.start(), match.end(), next(filter(None, match.groups())))
        for match in INLINE.finditer(text)
        if is_bare(match[0])
    ]
    blank = text
    for start, end, _ in spans:
        blank = blank[:start] + "x" * (end - start) + blank[end:]
    spans += [(m.start(), m.end(), m[0]) for m in NUMBER.finditer(_plain(blank))]
    found: list[tuple[int, str]] = []
    for start, end, content in sorted(spans):
        if CORRECTED.search(text[max(0, start - NEAR_CHARS) : start]):
            continue
        if found and JOINED.fullmatch(text, found[-1][0], start):
            before = found.pop()[1]
            content = before and f"{before}, {content}"
        found.append((end, "" if is_denied(text, start, end) else content))
    return [content for _, content in found]


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text that does not touch a letter."""
    match = next(iter(deque(NUMBER.finditer(_plain(text)), maxlen=1)), None)
    if match is None or len(match[0]) > MAX_ANSWER_CHARS:
        return None
    top, bottom = (Fraction((match[part] or "1").replace(",", "")) for part in ("top", "bottom"))
    if bottom == 0:
        return None
    return (-top if match["sign"] == "-" else top) / bottom


def _plain(text: str) -> str:
    """Return the text, of the same length, with an ASCII minus sign and without `$` and `\\`."""
    return text.replace("\N{MINUS SIGN}", "-").replace("$", " ").replace("\\", " ")
