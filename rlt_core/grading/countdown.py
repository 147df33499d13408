"""Countdown: an arithmetic expression over given numbers that equals a target.

The expression is read by Python's parser and walked over a handful of allowed nodes; it is never
evaluated as code, and the arithmetic is exact.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rlt_core.grading.text import marked_answer

_MAX_EXPRESSION_CHARS = 300

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
_TYPOGRAPHY = str.maketrans(
    {"\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/", "\N{MINUS SIGN}": "-"}
)


@dataclass(frozen=True)
class Task:
    """What an expression has to do."""

    numbers: tuple[int, ...]
    target: int
    use_all: bool = True
    """Every number exactly once (reasoning-gym's rule); else at most once."""


def parse_task(metadata: str | None) -> Task | None:
    """Numbers, target and rule from the JSON metadata; None if they are not there."""
    try:
        value: Any = json.loads(metadata or "")
        numbers = tuple(int(number) for number in value["numbers"])
        return Task(numbers, int(value["target"]), bool(value.get("use_all", True)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _parse(text: str) -> ast.expr | None:
    if len(text) > _MAX_EXPRESSION_CHARS:
        return None
    expression = text.translate(_TYPOGRAPHY).split("=")[0].strip().strip("$").strip()
    try:
        tree = ast.parse(expression.rstrip("."), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # what the parser may raise
        return None
    return tree if all(_allowed(node) for node in ast.walk(tree)) else None


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.BinOp):
        return type(node.op) in _OPERATIONS
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub)
    return isinstance(node, ast.operator | ast.unaryop)


def read_expression(solution: str) -> str | None:
    """The expression that a solution gives: marked as the answer, else all of it, else its last
    line. None if that is no arithmetic expression over integers with + - * / and brackets."""
    marked = marked_answer(solution)
    lines = solution.strip().splitlines() or [""]
    for candidate in (marked,) if marked is not None else (solution.strip(), lines[-1].strip()):
        if _parse(candidate) is not None:
            return candidate
    return None


def _numbers(tree: ast.expr) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            yield node.value


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand)
    assert isinstance(node, ast.BinOp)
    return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))


def solves(expression: str, task: Task) -> bool:
    """Whether an expression keeps the rule and equals the target. One that `read_expression` would
    not return does not."""
    tree = _parse(expression)
    if tree is None:
        return False
    used, given = Counter(_numbers(tree)), Counter(task.numbers)
    allowed = used == given if task.use_all else not used - given
    try:
        return allowed and _value(tree) == task.target
    except ZeroDivisionError:
        return False
