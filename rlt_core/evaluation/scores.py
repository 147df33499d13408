"""Scores of graded samples: avg@n and pass@k with their intervals."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlt_core.evaluation.intervals import Estimate, clustered_mean, pass_at_k
from rlt_core.grading import UNGRADED


def score_rows(
    samples: Sequence[Mapping[str, Any]], pass_at: Iterable[int], label: str
) -> list[dict[str, Any]]:
    """Return avg@n and pass@k of every task in rows of one model and seed, with 95% intervals; n is
    the number of samples per question.

    `unparsable` and `grader_failed` count as wrong. Questions without graded samples are left out,
    for pass@k those with fewer than k. A score without any question is null.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        tasks[sample["task"]].append(sample)
    rows = []
    for rows_of_task in tasks.values():
        n = max(Counter(sample["question_id"] for sample in rows_of_task).values())
        graded: dict[str, list[bool]] = defaultdict(list)
        for sample in rows_of_task:
            if sample["outcome"] not in UNGRADED:
                graded[sample["question_id"]].append(sample["outcome"] == "correct")
        common = {name: rows_of_task[0][name] for name in ("task", "seed", "model")} | {
            "label": label,
            "samples": n,
            "ungraded": len(rows_of_task) - sum(map(len, graded.values())),
            "grader_failed": sum(row["outcome"] == "grader_failed" for row in rows_of_task),
        }
        means = [sum(marks) / len(marks) for marks in graded.values()]
        rows.append(common | _row(f"avg@{n}", means, graded))
        for k in pass_at:
            enough = [marks for marks in graded.values() if len(marks) >= k]
            values = [pass_at_k(sum(marks), len(marks), k) for marks in enough]
            rows.append(common | _row(f"pass@{k}", values, graded))
    return rows


def _row(metric: str, values: list[float], graded: Mapping[str, list[bool]]) -> dict[str, Any]:
    estimate = clustered_mean(values, sum(map(len, graded.values())))
    nothing: dict[str, Any] = {"value": None, "low": None, "high": None, "questions": 0}
    return {"metric": metric, **(vars(estimate) if isinstance(estimate, Estimate) else nothing)}
