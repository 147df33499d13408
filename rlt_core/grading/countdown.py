"""Countdown: an arithmetic expression over given numbers that equals a target.

Python's parser reads the expression; a few kinds of nodes are allowed and computed exactly. It is
never evaluated as code.
"""

# ruff: noqa: RUF001
import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rlt_core.grading.markers import after_thought, is_denied, marked_answer

_MAX_EXPRESSION_CHARS = 300
_MAX_LINES, _TAIL_CHARS = 200, 1 << 14

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_RULES = [(re.compile(pattern), new) for pattern, new in [
    (r"\\[dtc]?frac ?\{([^{}]*)\} ?\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\[dtc]?frac ?(\d)(\d)", r"(\1/\2)"),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])|\\\*|[×·⋅∙•✕✖∗]", "*"),
    (r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1"),
    (r"\\div(?![A-Za-z])|[÷∕⁄]", "/"),
    (r"[−–]", "-"),
    (r"(?<=[\d)\]]) ?[xX] ?(?=[\d(\[])", "*"),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|\\[,;!: ]|\\[()\[\]]|[$`]", " "),
    (r"(?<![\d)\]])(?<![\d)\]] )\*\*|\*\*(?!\s*[\d(])", " "),  # bold
    (r"\\?[\[{]", "("), (r"\\?[\]}]", ")"),
    (r"(?<=[\d)]) ?(?=\(\s*[-\d(])|(?<=\)) ?(?=\d)", "*"),
]]  # fmt: skip
_WIDE_DIGITS = {0xFF10 + digit: str(digit) for digit in range(10)}
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)]) +")
_RUN = re.compile(
    r"(?<![\w.,+*/-])(?:-(?=[\d(]))?[(\d][-+*/()\d \t]*(?:= *[-+*/()\d \t]+)*(?![\w,]|\.\d)"
)
_OPERATOR = re.compile(r"[\d)] *[-+*/]")
_SIDE = re.compile(r"[-+*/()\d \t.,]*|\?")


@dataclass(frozen=True)
class Task:
    """A countdown problem."""

    numbers: tuple[int, ...]
    target: int
    use_all: bool = True
    """Use every number exactly once (reasoning-gym's rule), else at most once."""


def parse_task(metadata: Mapping[str, Any]) -> Task | None:
    """Read a problem from the metadata; None if there is none."""
    try:
        numbers = tuple(map(int, metadata["numbers"]))
        return Task(numbers, int(metadata["target"]), bool(metadata.get("use_all", True)))
    except (ValueError, KeyError, TypeError):
        return None


def _plain(text: str) -> str:
    """Convert LaTeX and typography to Python's arithmetic."""
    text = text.translate(_WIDE_DIGITS)
    for pattern, new in _RULES:
        for _ in range(4 if "frac" in pattern.pattern else 1):  # fractions of fractions
            text = pattern.sub(new, text)
    return text


def _read(text: str) -> tuple[Fraction | None, list[int]] | None:
    """Return the value and the numbers of an expression, of an equation those of the first side
    with an operator; no value for a division by zero. None if it is anything else."""
    if len(text) > _MAX_EXPRESSION_CHARS:
        return None
    sides = [side.strip(" .\t") for side in text.split("=")]
    if not all(map(_SIDE.fullmatch, sides)):
        return None
    expression = next((side for side in sides if _OPERATOR.search(side)), sides[0])
    numbers: list[int] = []
    try:
        return _value(ast.parse(expression, mode="eval").body, numbers), numbers
    except ZeroDivisionError:
        return None, numbers
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all that the parser may raise
        return None


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """Compute an expression and collect its numbers. Raises ValueError for what is not allowed."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, numbers)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _value(node.left, numbers), _value(node.right, numbers)
        return _OPERATIONS[type(node.op)](left, right)
    raise ValueError(ast.dump(node)[:80])


def _inside(text: str) -> str | None:
    """Return the arithmetic expression in a line, of several the one with most numbers; None if
    there is none, or a choice of them."""
    text = _plain(text).strip()
    if _read(text) is not None:
        return text
    runs = [
        match
        for match in _RUN.finditer(text)
        if _OPERATOR.search(match[0]) and not is_denied(text, *match.span())
    ]
    found = [_read(match[0].strip()) for match in runs]
    if not found or None in found:
        return None
    counts = [len(numbers) for _, numbers in filter(None, found)]
    longest = [run for run, count in zip(runs, counts, strict=True) if count == max(counts)]
    between = text[longest[-2].end() : longest[-1].start()] if len(longest) > 1 else ""
    return None if between.strip(" ,") in (",", "or", "and") else longest[-1][0].strip()


def read_expression(solution: str) -> str | None:
    """Return a solution's expression: the marked answer, else its last line that is an expression,
    else the one in its last line that contains one. None without an arithmetic expression over
    integers with + - * / and brackets."""
    marked = marked_answer(solution)
    if marked is not None:
        return _inside(marked)
    text = after_thought(solution).strip()[-_TAIL_CHARS:]
    lines = [_BULLET.sub("", line, count=1).strip() for line in text.splitlines()[-_MAX_LINES:]]
    alone = [line for line in lines if _read(_plain(line).strip()) is not None]
    found = [_inside(line) for line in (alone or lines) if len(line) <= 4 * _MAX_EXPRESSION_CHARS]
    return next(filter(None, reversed(found)), None)


def solves(task: Task, expression: str) -> bool:
    """Return whether an expression keeps the rule and equals the target."""
    found = _read(_plain(expression).strip())
    if found is None:
        return False
    value, numbers = found
    used, given = Counter(numbers), Counter(task.numbers)
    return value == task.target and (used == given if task.use_all else not used - given)
