"""Running totals in words, with traces of graded quality: a domain for a small language model.

    Dan has 16 apples. Dan sells 9, buys 5 more and then loses 8. How many apples does Dan have now?

A trace has one of three wordings: `Start: 16. 16-9=7. 7+5=12. 12-8=4.`, `16 minus 9 is 7. …` or
`Take 9 to get 7. …`. Its quality is a random fault rate between 0 and a half: each step is faulty
with this probability, and then either left out or wrong, in which case later steps continue from
what was written. About half of the traces have no fault. A solution is always the true total.
`running-totals-perfect` has the same questions, and traces without a fault.
"""

import json
from itertools import accumulate, product
from random import Random

from rlt_core.data.rawrow import RawRow
from rlt_core.errors import UserError

Problem = tuple[int, ...]
"""The first number and the changes."""
STARTS, CHANGES, SIZES = range(5, 31), 3, range(2, 10)
MAX_FAULT_RATE, LEFT_OUT_SHARE = 0.5, 0.35
WRONG_BY = (-2, -1, 1, 2)
NAMES = (
    "Dan", "Eva", "Tom", "Mia", "Sam", "Lea", "Ben", "Zoe", "Max", "Ida", "Leo", "Amy", "Jon",
    "Kim", "Pia", "Rob", "Sue", "Tim", "Una", "Will", "Nora", "Paul", "Rosa", "Hugo", "Lucy",
)  # fmt: skip
OBJECTS = (
    "apples", "books", "coins", "cards", "pens", "shells", "stamps", "marbles", "stones", "buttons",
    "beads", "tickets", "balls", "cups", "keys", "lemons", "plums", "nuts", "stickers", "candles",
)  # fmt: skip
GAINS = ("buys {} more", "finds {} more", "gets {} more", "wins {} more", "borrows {} more")
LOSSES = ("sells {}", "loses {}", "gives away {}", "throws away {}", "lends {} to a friend")


def running_total_rows(n: int, seed: int, perfect: bool = False) -> list[RawRow]:
    """Return `n` questions with traces; no two have the same numbers in the same order.

    Raises UserError if there are fewer problems than `n`.
    """
    problems = _problems()
    if n > len(problems):
        raise UserError(
            f"running-totals has {len(problems)} problems, but {n} are needed: lower n_train, "
            "n_validation or n_test"
        )
    asked, written = Random(f"running-totals-{seed}"), Random(f"running-totals-traces-{seed}")
    asked.shuffle(problems)
    rows = []
    for number, problem in enumerate(problems[:n], start=1):
        question, total = _question(problem, asked), str(sum(problem))
        trace = trace_of(problem, 0 if perfect else written.uniform(0, MAX_FAULT_RATE), written)
        numbers = f"{problem[0]}{''.join(f'{change:+}' for change in problem[1:])}"
        rows.append(
            RawRow(
                number, question, total, trace, answer=total, grader="arithmetic",
                metadata=json.dumps({"problem": numbers}),
            )
        )  # fmt: skip
    return rows


def _problems() -> list[Problem]:
    """Return all problems whose totals are at least 1."""
    changes = [sign * size for size in SIZES for sign in (1, -1)]
    every = product(STARTS, *[changes] * CHANGES)
    return [problem for problem in every if min(accumulate(problem)) >= 1]


def _question(problem: Problem, rng: Random) -> str:
    name, things = rng.choice(NAMES), rng.choice(OBJECTS)
    start, *changes = problem
    *first, last = [
        rng.choice(GAINS if change > 0 else LOSSES).format(abs(change)) for change in changes
    ]
    return (
        f"{name} has {start} {things}. {name} {', '.join(first)} and then {last}. "
        f"How many {things} does {name} have now?"
    )


def trace_of(problem: Problem, fault_rate: float, rng: Random) -> str:
    """Return a trace in a random wording with at least one step."""
    wording = rng.randrange(3)
    steps: list[str] = []
    while not steps:
        total = problem[0]
        for change in problem[1:]:
            before, total = total, total + change
            if rng.random() < fault_rate:
                if rng.random() < LEFT_OUT_SHARE:
                    continue
                total += rng.choice(WRONG_BY)
            steps.append(_step(wording, before, change, total))
    return " ".join([f"Start: {problem[0]}.", *steps] if wording == 0 else steps)


def _step(wording: int, before: int, change: int, after: int) -> str:
    size, gain = abs(change), change > 0
    if wording == 0:
        return f"{before}{change:+}={after}."
    if wording == 1:
        return f"{before} {'plus' if gain else 'minus'} {size} is {after}."
    return f"{'Add' if gain else 'Take'} {size} to get {after}."
