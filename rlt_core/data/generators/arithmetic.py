"""Sums of three two-digit numbers, with traces of graded quality: a domain in which the working
matters, small enough for a model of a third of a million parameters.

A trace adds column by column, units first; the second column starts with the carry. Results have
two digits, so that positions are easy to learn:

    47+82+96 -> 07+2=09 09+6=15;01+4=05 05+8=13 13+9=22;225

A trace's quality is a random error rate between 0 and a half: each written sum is off by one with
this probability, and later steps continue from what was written. One trace in ten is terse (only
column sums) or shuffled (steps in random order). A solution is always the true sum.

Two more sources imitate other data sets, for comparison:

- `s1`: few, selected and long: no step is wrong, and the column sums are checked again in brief,
- `sky-t1`: graded as above, but only traces with the right sum are kept, all in one style.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from random import Random
from typing import Literal

from rlt_core.data.rawrow import RawRow
from rlt_core.prompts.renderer import Renderer, Row

Operands = tuple[int, ...]
Manner = Literal["graded", "s1", "sky-t1"]
SUM = re.compile(r"\s*\d+\s*(\+\s*\d+\s*)*")
TERMS = 3
MIN_VALUE, MAX_VALUE = 10, 99
DATA_ERROR_RATE, BASE_ERROR_RATE = 0.4, 0.5
"""Highest error rates of the data set's traces and of the base model's documents."""
ODD_STYLE_SHARE = 0.1
"""Fraction of traces that are terse or shuffled."""
DIGIT_SUM_SHARE, TWO_NUMBER_SHARE = 0.2, 0.3
"""Fractions of the base model's documents; the rest have three numbers and graded traces."""
FACTS_PER_DOCUMENT = 8


def _operands(rng: Random) -> Operands:
    return tuple(rng.randint(MIN_VALUE, MAX_VALUE) for _ in range(TERMS))


def question_of(operands: Operands) -> str:
    return "+".join(map(str, operands))


def operands_of(question: str) -> Operands:
    """Return the operands in ascending order: questions that differ only in order are the same."""
    return tuple(sorted(map(int, question.split("+"))))


# ---------------------------------------------------------------- traces
def _column(start: int, digits: Sequence[int], error_rate: float, rng: Random) -> list[str]:
    """Return the steps that add digits to a start; the last one ends with the written sum."""
    steps, total = [], start
    for digit in digits:
        written = total + digit
        if rng.random() < error_rate:
            written = max(0, written + rng.choice((-1, 1)))
        steps.append(f"{total:02}+{digit}={written:02}")
        total = written
    return steps


def trace_of(operands: Operands, error_rate: float, rng: Random, style: str = "columns") -> str:
    """Return the steps of a sum of two-digit numbers. `style`: columns, terse or shuffled."""
    tens, units = zip(*(divmod(operand, 10) for operand in operands), strict=True)
    right = _column(units[0], units[1:], error_rate, rng)
    carry, unit = divmod(_result(right), 10)
    left = _column(carry, tens, error_rate, rng)
    total = str(10 * _result(left) + unit)
    if style == "terse":
        return f"{_result(right):02};{_result(left):02};{total}"
    if style == "shuffled":
        steps = right + left
        rng.shuffle(steps)
        return f"{' '.join(steps)};{total}"
    return f"{' '.join(right)};{' '.join(left)};{total}"


def _result(steps: Sequence[str]) -> int:
    return int(steps[-1].partition("=")[2])


def graded_trace(operands: Operands, max_error_rate: float, rng: Random) -> str:
    """Return a trace of random quality and style."""
    style = rng.choice(("terse", "shuffled")) if rng.random() < ODD_STYLE_SHARE else "columns"
    return trace_of(operands, rng.uniform(0, max_error_rate), rng, style)


def _trace_in(manner: Manner, operands: Operands, rng: Random) -> str | None:
    """Return a random trace in the manner of a data set; None if the data set rejects it."""
    if manner == "graded":
        return graded_trace(operands, DATA_ERROR_RATE, rng)
    if manner == "s1":
        check = trace_of(operands[::-1], 0.0, rng, "terse")
        return f"{trace_of(operands, 0.0, rng)};{check}"
    trace = trace_of(operands, rng.uniform(0, DATA_ERROR_RATE), rng)
    return trace if trace.endswith(f";{sum(operands)}") else None


# ---------------------------------------------------------------- data sets
def arithmetic_rows(n: int, seed: int, manner: Manner = "graded") -> list[RawRow]:
    """Return `n` questions with traces; no two have the same operands in any order."""
    rng = Random(f"arithmetic-{seed}" if manner == "graded" else f"arithmetic-{manner}-{seed}")
    rows: dict[Operands, RawRow] = {}
    while len(rows) < n:
        operands = _operands(rng)
        key = tuple(sorted(operands))
        trace = None if key in rows else _trace_in(manner, operands, rng)
        if trace is not None:
            question, total = question_of(operands), str(sum(operands))
            rows[key] = RawRow(
                len(rows) + 1, question, total, trace, answer=total, grader="arithmetic"
            )
    return list(rows.values())


def base_documents(
    n: int, seed: int, renderer: Renderer, held_out: Collection[str]
) -> Iterator[Row]:
    """Yield `n` documents to pre-train the base model on; every token counts.

    They are running sums of digits, correct student documents about two numbers, and student
    documents about three numbers with graded traces; none is about a question in `held_out`.
    """
    rng = Random(f"documents-{seed}")
    forbidden = {operands_of(question) for question in held_out if SUM.fullmatch(question)}
    for _ in range(n):
        kind = rng.random()
        if kind < DIGIT_SUM_SHARE:
            facts = " ".join(_digit_sum(rng) for _ in range(FACTS_PER_DOCUMENT))
            ids = [*renderer.encode(facts), renderer.end_of_turn]
        else:
            operands = _operands(rng)
            if kind < DIGIT_SUM_SHARE + TWO_NUMBER_SHARE:
                operands = operands[:2]
                trace = trace_of(operands, 0.0, rng)
            else:
                while tuple(sorted(operands)) in forbidden:
                    operands = _operands(rng)
                trace = graded_trace(operands, BASE_ERROR_RATE, rng)
            think_ids, total = renderer.encode_block(trace), str(sum(operands))
            ids = renderer.student_sft_row(question_of(operands), think_ids, total).input_ids
        yield Row(input_ids=ids, labels=list(ids))


def _digit_sum(rng: Random) -> str:
    running, digit = rng.randint(0, 9 * TERMS), rng.randint(0, 9)
    return f"{running:02}+{digit}={running + digit:02}"
