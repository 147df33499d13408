"""Countdown: reach a target with given numbers. Out of domain for arithmetic.

`countdown` is reasoning-gym's. `countdown-small` is for models of less than a million parameters:
three numbers in their order, to be added or subtracted.
"""

import json
from itertools import combinations_with_replacement, count, permutations, product
from random import Random

from rlt_core.data.rawrow import RawRow
from rlt_core.errors import UserError

MIN_NUMBERS, MAX_NUMBERS = 3, 4
SEED_STRIDE = 10_000_019
"""The generator numbers problem i of seed s as s + i, so seeds must be further apart than that."""

SMALL_NUMBERS, SMALL_LARGEST = 3, 20
"""Count of the numbers of a small problem, and the largest number."""

EVALUATION_QUESTIONS, EVALUATION_SEED = 100, 1_000_003
"""Size and seed of the evaluation set `countdown`; no training uses this seed."""


def countdown_rows(n: int, seed: int) -> list[RawRow]:
    """Return `n` problems that differ in numbers (in any order) or target, with one solution each.

    reasoning-gym rounds targets down; a problem whose own solution misses its target is skipped.
    """
    from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

    from rlt_core.grading.countdown import Task, solves

    generator = CountdownDataset(
        CountdownConfig(
            min_numbers=MIN_NUMBERS, max_numbers=MAX_NUMBERS, seed=seed * SEED_STRIDE, size=1
        )
    )
    rows: dict[tuple[int, ...], RawRow] = {}
    for i in count():
        if len(rows) == n:
            break
        problem = generator[i]
        numbers, target = problem["metadata"]["numbers"], problem["metadata"]["target"]
        if not solves(Task(tuple(numbers), target), problem["answer"]):
            continue
        question = (
            f"Use each of {', '.join(map(str, numbers))} exactly once, with + - * / and brackets, "
            f"to make {target}. Answer with the expression."
        )
        row = _row(len(rows) + 1, question, problem["answer"], numbers, target)
        rows.setdefault((target, *sorted(numbers)), row)
    return list(rows.values())


def small_countdown_rows(n: int, seed: int) -> list[RawRow]:
    """Return `n` small problems that differ in numbers (in any order) or target: `12,3,7>8`, solved
    by `12+3-7`.

    A problem's numbers have the order of its solution, a random one of all that reach the target.
    Raises UserError if there are fewer than `n` problems.
    """
    rng = Random(f"countdown-small-{seed}")
    problems = _small_problems()
    if n > len(problems):
        raise UserError(
            f"countdown-small has {len(problems)} problems, but {n} are needed: lower n_train, "
            "n_validation or n_test, or set source=countdown"
        )
    rows: list[RawRow] = []
    for (numbers, target), solutions in rng.sample(problems, n):
        order, signs = rng.choice(solutions)
        question = f"{','.join(map(str, order))}>{target}"
        changes = (f"{sign * number:+}" for sign, number in zip(signs, order[1:], strict=True))
        solution = f"{order[0]}{''.join(changes)}"
        rows.append(_row(len(rows) + 1, question, solution, list(numbers), target))
    return rows


def _row(row: int, question: str, solution: str, numbers: list[int], target: int) -> RawRow:
    metadata = json.dumps({"numbers": numbers, "target": target})
    return RawRow(
        row, question, solution, answer=str(target), grader="countdown", metadata=metadata
    )


Problem = tuple[tuple[int, ...], int]
Solution = tuple[tuple[int, ...], tuple[int, ...]]
"""An order of the numbers, and the signs of all but the first."""


def _small_problems() -> list[tuple[Problem, list[Solution]]]:
    """Return every problem (sorted numbers, target >= 0) with all its solutions."""
    found: dict[Problem, list[Solution]] = {}
    numbers = range(1, SMALL_LARGEST + 1)
    for chosen in combinations_with_replacement(numbers, SMALL_NUMBERS):
        orders = sorted(set(permutations(chosen)))
        for order, signs in product(orders, product((1, -1), repeat=SMALL_NUMBERS - 1)):
            target = order[0] + sum(
                sign * number for sign, number in zip(signs, order[1:], strict=True)
            )
            if target >= 0:
                found.setdefault((chosen, target), []).append((order, signs))
    return list(found.items())
