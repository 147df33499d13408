r"""Typed answers: numbers, sets, tuples, intervals, matrices, equations, times, words.

`parse` finds an answer's type; `compare.same` compares two answers by their types.
"""

import operator
import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rlt_core.grading.markers import MAX_ANSWER_CHARS
from rlt_core.grading.normalize import normalized, unwrapped
from rlt_core.grading.values import MONTH, PROSE, SPOKEN, THOUSANDS, Answer, number, scalar, words

_MAX_DEPTH = 12


_HALF = r"(?:\\text\{)? ?([ap])\.? ?m\.? ?\}?"
_TIME = re.compile(rf"(\d{{1,2}}):([0-5]\d)(?::([0-5]\d))? ?(?:{_HALF})?", re.I)
_HOUR = re.compile(rf"(1[0-2]|0?[1-9]) ?{_HALF}", re.I)
_BASE = re.compile(r"[({]?([0-9A-Fa-f]+)[)}]?_\{?\(?(?:\\text\{)?([0-9]+|[a-z]+)\)?\}*")
_MATRIX = re.compile(r"[\[(]?\\begin\{([pbBvV]?(?:small)?matrix|array)\}(?:\{[lcr| ]*\})?(.*)"
                     r"\\end\{\1\}[\])]?", re.S)  # fmt: skip
_OPERATOR = re.compile(r"\\(?:le|ge|ne|in)(?![A-Za-z])|[<>=]")
_SEPARATOR = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_CONDITION = re.compile(r"[a-z](?:, ?[a-z])* ?\\in ?\\mathbb\{?[ZNRQ]\}?(?:\^\+)?|"
                        r"(?:\\text\{)?(?:where|for).*")  # fmt: skip
_UNITED = re.compile(r"\\(?:cup|setminus|backslash)(?![A-Za-z])|-(?=\\\{)")
_ABSOLUTE = re.compile(r"\|([a-z])(?:([-+])([\d.]+|\\frac\{\d+\}\{\d+\}))?\|")
_SUCH_THAT = re.compile(r"\\\{ ?([a-z])(?: ?\\in ?\\mathbb\{?R\}?)? ?(?:\\mid|[|:]) ?(.+)\\\}")
_NO_NAME = re.compile(r"-.*|\\(?:pi|infty)|[ei]")
_VARIABLE = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?")
_INFINITY = r"\infty"


def parse(text: str) -> Answer | None:
    """Return a typed answer; None if it is empty or too long."""
    if not text.strip() or len(text) > MAX_ANSWER_CHARS:
        return None
    clean = normalized(text)
    return _parse(clean, 0) if clean else None


@lru_cache(maxsize=4096)
def _parse(text: str, depth: int) -> Answer:
    text = unwrapped(text)
    if depth > _MAX_DEPTH or not text:
        return words(text)
    if match := _TIME.fullmatch(text):
        return Answer("time", text, (int(match[1]), int(match[2]), int(match[3] or 0),
                                     (match[4] or "").lower()))  # fmt: skip
    if match := _HOUR.fullmatch(text):
        return Answer("time", text, (int(match[1]), 0, 0, match[2].lower()))
    inner = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    if inner and inner[1].strip():
        found = _parse(normalized(inner[1].strip()), depth + 1)
        exact = found.kind == "scalar" and isinstance(found.parts[0], Fraction)
        typed = exact or found.kind in ("time", "base", "set", "list", "region")
        return found if typed else words(inner[1].strip())
    if match := _BASE.fullmatch(text):
        base = str(SPOKEN.get(match[2], match[2]))
    if match and (re.search(r"\d", match[1]) or (base == "16" and len(match[1]) > 1)):
        return Answer("base", text, (match[1].upper().lstrip("0"), base))
    if (match := _MATRIX.fullmatch(text)) and match[2].count(r"\begin") == 0:
        return _matrix(text, match[1], match[2], depth)
    if MONTH.search(text) and re.search(r"\d", text) and "\\" not in text.replace("\\text", ""):
        return words(text)
    return (
        _several(text, depth)
        or _related(text, depth)
        or _bracketed(text, depth)
        or _united(text, depth)
        or _plus_minus(text, depth)
        or scalar(text)
    )


def _split(text: str, pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Split a text at matches outside all brackets; return the parts and the matches."""
    parts, found, depth, start, i = [], [], 0, 0, 0
    while i < len(text):
        escaped = text.startswith(("\\{", "\\}"), i)
        character = text[i + escaped]
        if text.startswith(r"\begin", i):
            depth += 1
        elif text.startswith(r"\end", i) and not text.startswith(r"\endl", i):
            depth -= 1
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and (match := pattern.match(text, i)):
            parts.append(text[start:i].strip())
            found.append(match[0])
            start = i = match.end()
            continue
        i += 1 + escaped
    return [*parts, text[start:].strip()], found


def _items(text: str, bracketed: bool) -> tuple[list[str], list[str]]:
    """Split a text at commas, semicolons, `and` and `or`; return the parts and those words. Commas
    of thousands do not count; in brackets they are those beside commas with a space."""
    if not bracketed or ", " in text or "; " in text:
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    parts, separators = _split(text, _SEPARATOR)
    kept = [part for part in parts if part]
    return kept, [each for each in separators if each not in ",;"]


def _several(text: str, depth: int) -> Answer | None:
    if PROSE.search(re.sub(r"\\[A-Za-z]+|(?<![A-Za-z])(?:and|or)(?![A-Za-z])", "1", text)) and (
        not re.search(r",|\band\b|\bor\b", text) or len(text.split()) > 12
    ):
        return None
    items, joined = _items(text, bracketed=False)
    items = [item for item in items if not _CONDITION.fullmatch(item)] or items
    if len(items) < 2:
        return (
            replace(_parse(items[0], depth + 1), text=text) if items not in ([], [text]) else None
        )
    answers = [_parse(item, depth + 1) for item in items]
    names = [answer.parts[0] if answer.kind == "assignment" else None for answer in answers]
    if names[0] is None or any(name not in (None, names[0]) for name in names):
        return _collected(answers, text)
    values = [each.parts[1] if each.kind == "assignment" else each for each in answers]
    if all(value.kind == "region" for value in values):
        value = _joined_regions([value.parts for value in values], text, "and" in joined)
    else:  # x = 1, 2 or x = 1, x = 2
        value = _collected(values, text)
    return Answer("assignment", text, (names[0], value))


def _collected(answers: list[Answer], text: str) -> Answer:
    """Return a flat list (`\\pm 1, 2`), or the sum that one quantity is written as
    (`2 hours and 30 minutes`)."""
    flat = [part for each in answers for part in (each.parts if each.kind == "list" else [each])]
    units = [each.parts[2] for each in flat if each.kind == "scalar"]
    if len(units) == len(flat) and None not in units and len({unit[0] for unit in units}) == 1:
        factors = [factor for _, factor in units]
        amounts = [each.parts[0] for each in flat]
        if factors == sorted(set(factors), reverse=True) and all(
            isinstance(amount, Fraction) for amount in amounts
        ):
            whole = sum(map(operator.mul, amounts, factors)) / factors[0]
            return Answer("scalar", text, (whole, False, units[0]))
    return Answer("list", text, tuple(flat))


def _joined_regions(regions: list[tuple[Any, ...]], text: str, both: bool) -> Answer:
    """Return the union; for two overlapping half-lines joined by `and`, the intersection."""
    pieces = [piece for region in regions for piece in region]
    if both and len(pieces) == 2:
        lower = [piece for piece in pieces if piece[2].text == _INFINITY]
        upper = [piece for piece in pieces if piece[0].text == "-" + _INFINITY]
        if len(lower) == len(upper) == 1:
            return Answer("region", text, ((*lower[0][:2], *upper[0][2:]),))
    return Answer("region", text, tuple(pieces))


def _is_name(text: str) -> bool:
    """Return whether a side of an equation is a name: `x`, `f(2)`, `P(A \\cap B)`, `a+b`."""
    bare = re.sub(r"_(?:\{[^{}]*\}|\w)|(?<=[A-Za-z'])\([^()]*\)", "", text)
    return (
        re.search(r"[A-Za-z]", re.sub(r"\\(?:frac|sqrt|cdot|times|pi)", "", bare)) is not None
        and re.search(r"\d", bare) is None
        and _NO_NAME.fullmatch(bare) is None
    )


def _related(text: str, depth: int) -> Answer | None:
    sides, operators = _split(text, _OPERATOR)
    if not operators or not all(sides):
        return None
    if set(operators) == {"="}:
        left, right = sides[0], sides[-1]
        if not _is_name(left) and _is_name(right) and not re.search("[A-Za-z]{2}", right):
            left, right = right, left
        if _is_name(left):
            return Answer("assignment", text, (_tight(left), _parse(right, depth + 1)))
        if len(sides) > 2 or not re.search(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", left):
            return _parse(right, depth + 1)
        return Answer("relation", text, ("=", scalar(left), scalar(right)))
    if operators == ["\\in"]:
        return Answer("assignment", text, (_tight(sides[0]), _parse(sides[1], depth + 1)))
    return _inequality(text, sides, operators, depth)


_UPWARDS = {"<": "<", ">": "<", r"\le": r"\le", r"\ge": r"\le"}


def _inequality(text: str, sides: list[str], operators: list[str], depth: int) -> Answer | None:
    """Return the region that bounds a variable, else a relation with `<` or `\\le`."""
    if len({each in (">", r"\ge") for each in operators}) > 1:
        return None
    low, high = scalar("-" + _INFINITY), scalar(_INFINITY)
    if len(sides) == 2 and (distance := _ABSOLUTE.fullmatch(sides[0])):
        return _distance(distance, operators[0], number(sides[1]), depth)
    if operators == [r"\ne"] and any(map(_is_variable, sides)):
        name, end = sides if _is_variable(sides[0]) else sides[::-1]
        pieces = ((low, False, scalar(end), False), (scalar(end), False, high, False))
        return Answer("assignment", text, (_tight(name), Answer("region", text, pieces)))
    if not all(each in _UPWARDS for each in operators) or len(sides) > 3:
        return None
    if operators[0] in (">", r"\ge"):
        sides, operators = sides[::-1], operators[::-1]
    ends, closed = [*map(scalar, sides)], [_UPWARDS[each] == r"\le" for each in operators]
    if len(sides) == 2 and _is_variable(sides[0]):
        sides, ends, closed = ["", *sides], [low, *ends], [False, *closed]
    elif len(sides) == 2 and _is_variable(sides[1]):
        ends, closed = [*ends, high], [*closed, False]
    elif len(sides) == 2:
        return Answer("relation", text, (_UPWARDS[operators[0]], *ends))
    if not _is_variable(sides[1]):
        return None
    region = Answer("region", text, ((ends[0], closed[0], ends[2], closed[1]),))
    return Answer("assignment", text, (_tight(sides[1]), region))


def _distance(
    distance: re.Match[str], operator: str, radius: Fraction | None, depth: int
) -> Answer | None:
    """Return the region of `|x-3|<2`; None unless its ends are exact."""
    name, sign, middle = distance[1], distance[2], number(distance[3] or "0")
    if middle is None or radius is None or operator == r"\ne":
        return None
    middle = -middle if sign == "+" else middle
    low, high = middle - radius, middle + radius
    if operator in ("<", r"\le"):
        return _parse(f"{low}{operator} {name}{operator} {high}", depth + 1)
    below = operator.replace(">", "<").replace("ge", "le")
    return _parse(f"{name}{below} {low} or {name}{operator} {high}", depth + 1)


def _is_variable(text: str) -> bool:
    return _VARIABLE.fullmatch(text) is not None and text not in (r"\pi", _INFINITY)


def _tight(text: str) -> str:
    return text.replace(" ", "").replace("{", "").replace("}", "")


def _bracketed(text: str, depth: int) -> Answer | None:
    text = re.sub(r"^[A-Z](?=\([^()]*,[^()]*\)$)", "", text)  # P(1,2)
    if such := _SUCH_THAT.fullmatch(text):
        found = _parse(such[2], depth + 1)
        return found.parts[1] if found.kind == "assignment" and found.parts[0] == such[1] else None
    if text.startswith(r"\{") and text.endswith(r"\}") and text.count(r"\{") == 1:
        inner = text[2:-2].strip()
        return Answer(
            "set", text, tuple(_parse(item, depth + 1) for item in _items(inner, True)[0])
        )
    if text == r"\emptyset" or re.fullmatch(
        r"\\?(?:text\{)?(?:there (?:is|are) )?no (?:real )?solutions?\}?", text, re.I
    ):
        return Answer("set", text)
    if re.fullmatch(r"\\mathbb\{?R\}?|all (?:real numbers|reals)", text, re.I):
        low, high = scalar("-" + _INFINITY), scalar(_INFINITY)
        return Answer("region", text, ((low, False, high, False),))
    if len(text) < 3 or text[0] not in "([]" or text[-1] not in ")][":
        return None
    if text[0] == "]" or text[-1] == "[":  # ]2,5[ is (2,5)
        text = text[0].replace("]", "(") + text[1:-1] + text[-1].replace("[", ")")
    if not _encloses(text):
        return None
    items, _ = _items(text[1:-1], True)
    if items and all(each[0] + each[-1] == "[]" for each in (text, *items)):
        return _rows(text, [_items(item[1:-1], True)[0] for item in items], "", depth)
    if len(items) == 1 and text[0] == "(" and text[-1] == ")":
        letter = re.fullmatch(r"[A-Za-z]", items[0])
        return words(items[0]) if letter else _parse(items[0], depth + 1)
    if len(items) < 2:
        return None
    answers = tuple(_parse(item, depth + 1) for item in items)
    if len(items) == 2 and text[0] + text[-1] != "()":
        piece = (answers[0], text[0] == "[", answers[1], text[-1] == "]")
        return Answer("region", text, (piece,))
    return Answer("tuple", text, answers)


def _encloses(text: str) -> bool:
    """Return whether the last bracket closes the first, whatever their kinds."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return i == len(text) - 1
    return False


def _united(text: str, depth: int) -> Answer | None:
    sides, operators = _split(text, _UNITED)
    if not operators:
        return None
    regions = [as_region(_parse(side, depth + 1)) for side in sides if side]
    if None in regions:
        return None
    if operators[0] != r"\cup":
        return _without(text, regions[0] or (), regions[1] or ()) if len(regions) == 2 else None
    return Answer("region", text, tuple(piece for region in regions for piece in region or ()))


def _without(text: str, region: tuple[Any, ...], points: tuple[Any, ...]) -> Answer | None:
    """Return an interval without points, which are assumed to be inside it."""
    numbers = [low.parts[0] for low, *_ in points if low.kind == "scalar"]
    if len(region) != 1 or len(numbers) < len(points):
        return None
    if not all(isinstance(number, Fraction) for number in numbers):
        return None
    pieces: list[tuple[Any, ...]] = []
    low, closed, high, closed_above = region[0]
    for point, *_ in sorted(points, key=lambda piece: piece[0].parts[0]):
        pieces.append((low, closed, point, False))
        low, closed = point, False
    return Answer("region", text, (*pieces, (low, closed, high, closed_above)))


def as_region(answer: Answer) -> tuple[Any, ...] | None:
    """Return the intervals of a region, a pair (an open interval) or a finite set."""
    if answer.kind == "region":
        return answer.parts
    if answer.kind == "tuple" and len(answer.parts) == 2:
        return ((answer.parts[0], False, answer.parts[1], False),)
    if answer.kind == "set":
        return tuple((each, True, each, True) for each in answer.parts)
    return None


def _plus_minus(text: str, depth: int) -> Answer | None:
    if r"\pm" not in text and r"\mp" not in text:
        return None
    signs = [
        re.sub(r"\\pm ?", upper, re.sub(r"\\mp ?", lower, text)) for upper, lower in ("+-", "-+")
    ]
    return Answer(
        "list", text, tuple(_parse(each.strip().removeprefix("+"), depth + 1) for each in signs)
    )


def _matrix(text: str, environment: str, body: str, depth: int) -> Answer:
    lines = re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", body.replace(r"\hline", ""))
    rows = [line.split("&") for line in lines if line.strip()]
    return _rows(text, rows, "|" if environment in ("vmatrix", "Vmatrix") else "", depth)


def _rows(text: str, rows: list[list[str]], mark: str, depth: int) -> Answer:
    shape = (mark, *map(len, rows))
    cells = (_parse(cell.strip(), depth + 1) for row in rows for cell in row)
    return Answer("matrix", text, (shape, *cells))
