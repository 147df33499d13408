"""Mathematics by math-verify. Slow to import and able to hang: call it in the grading worker."""

from __future__ import annotations

import re
from typing import Any

from rlt_core.grading.text import MAX_ANSWER_CHARS, boxed, marked_answer

_NEVER_S = 10**6
"""math-verify's own alarms turn a hang into `wrong`; they are set so late that the worker is killed
first, and the item is reported as grader_failed."""
_TAIL_CHARS = 4 * MAX_ANSWER_CHARS
_COMMANDS = re.compile(r"\\(?:text|mbox|mathrm)\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")


def _is_bare(text: str) -> bool:
    """Whether a text is mathematics alone: one line without words."""
    return "\n" not in text and _WORD.search(_COMMANDS.sub(" ", text)) is None


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [LatexExtractionConfig(), ExprExtractionConfig()]
    return parse(text, extraction_config=configs, parsing_timeout=_NEVER_S)


def parse_answer(answer: str) -> list[Any]:
    """An answer (not prose around one): SymPy forms, then its text; empty if unparsable."""
    answer = answer.strip().removesuffix(".").strip()
    if not answer or len(answer) > MAX_ANSWER_CHARS:
        return []
    box = rf"\boxed{{{answer.strip('$')}}}"
    return _parse(box) if _is_bare(answer) else _parse(answer) or _parse(box)


def parse_solution(solution: str) -> list[Any]:
    """The answer in a solution: what it marks, else the mathematics that it is, else the last
    expression in it."""
    box = boxed(solution)
    if box is not None:
        return _parse(rf"\boxed{{{box}}}") if len(box) <= MAX_ANSWER_CHARS else []
    marked = marked_answer(solution)
    if marked is not None:
        return parse_answer(marked)
    solution = solution.strip()
    if len(solution) <= MAX_ANSWER_CHARS and _is_bare(solution):
        return parse_answer(solution)
    return _parse(solution[-_TAIL_CHARS:])


def is_answer(text: str) -> bool:
    """Whether a whole text can serve as an answer: mathematics alone that math-verify parses."""
    return _is_bare(text) and bool(parse_answer(text))


def same(answer: list[Any], given: list[Any]) -> bool:
    """Whether two parsed answers are mathematically equal."""
    from math_verify import verify

    return verify(answer, given, timeout_seconds=_NEVER_S)


def shown(parsed: list[Any]) -> str:
    """A parsed answer as text."""
    return str(parsed[-1])
