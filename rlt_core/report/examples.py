"""Texts to look at: explanations of one question, answers to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlt_core.report.inputs import Part, Parts
from rlt_core.report.training import AFTER, BEFORE

PARTS_OF_REWARD = ("reward", "r_ss", "r_kl", "penalty", "rank")


@dataclass(frozen=True)
class Text:
    """A text that a model or the data set wrote."""

    title: str
    text: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A question and what was written about it."""

    title: str
    question: str
    solution: str | None
    texts: list[Text]


def examples(parts: Parts, students: Sequence[str]) -> list[Example]:
    """The first held-out question with the teachers' explanations, the first test question with
    the students' answers: the first by id of question, not picked."""
    return [*_explanations(parts), *_answers(parts, students)]


def _first_seed(parts: Parts, stage: str, variant: str) -> Part | None:
    return next(iter(parts.by_variant(stage).get(variant, [])), None)


def _explanations(parts: Parts) -> Iterator[Example]:
    by_teacher = {
        title: (traces, _first_seed(parts, "trace-scoring", variant))
        for title, variant in (("The teacher before RL", BEFORE), ("The teacher after RL", AFTER))
        if (traces := _first_seed(parts, "trace-generation", variant))
    }
    if not by_teacher:
        return
    asked = _questions(parts, next(iter(by_teacher.values()))[0])
    rows = {title: _first_traces(traces) for title, (traces, _) in by_teacher.items()}
    common = set.intersection(*(set(by_question) for by_question in rows.values()))
    chosen = min(common & asked.keys(), default=None)
    if chosen is None:
        return
    question = asked[chosen]
    texts = []
    if question["trace"]:
        texts.append(Text("The data set's own trace", question["trace"]))
    for title, (_, scores) in by_teacher.items():
        trace = rows[title][chosen]
        facts = _reward(scores, trace["trace_id"]) if scores else {}
        texts.append(Text(title, trace["text"], {**facts, "closed": str(trace["closed"]).lower()}))
    title = f"Explanations of held-out question {chosen}"
    yield Example(title, question["question"], question["solution"], texts)


def _questions(parts: Parts, traces: Part) -> dict[str, dict[str, Any]]:
    """Question -> its row, of the data set that the traces were written for."""
    key = traces.manifest.inputs["questions"].key
    made = [part for part in parts.all if part.manifest.ref.key == key]
    return {row["question_id"]: row for part in made for row in part.rows("questions")}


def _first_traces(part: Part) -> dict[str, dict[str, Any]]:
    """Question -> its first completion."""
    rows = part.rows("traces", "trace_id", "question_id", "sample", "text", "closed")
    ordered = sorted(rows, key=lambda row: -row["sample"])
    return {row["question_id"]: row for row in ordered}


def _reward(scores: Part, trace_id: str) -> dict[str, str]:
    columns = ("trace_id", "status", *PARTS_OF_REWARD)
    row = next((r for r in scores.rows("scores", *columns) if r["trace_id"] == trace_id), None)
    if row is None or row["status"] != "scored":
        return {"reward": "not scored" if row is None else row["status"]}
    return {name: f"{row[name]:.4g}" for name in PARTS_OF_REWARD if row[name] is not None}


def _answers(parts: Parts, students: Sequence[str]) -> Iterator[Example]:
    columns = (
        "task", "question_id", "sample", "question", "completion", "extracted", "answer", "outcome",
    )  # fmt: skip
    answered: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for student in students:
        if part := _first_seed(parts, "evaluation", student):
            rows = sorted(part.rows("eval_samples", *columns), key=lambda row: -row["sample"])
            answered[student] = {(row["task"], row["question_id"]): row for row in rows}
    if not answered:
        return
    common = set.intersection(*(set(rows) for rows in answered.values()))
    if not common:
        return
    first_task = next(iter(next(iter(answered.values()))))[0]
    chosen = min(common, key=lambda name: (name[0] != first_task, name))
    rows_of_question = {student: rows[chosen] for student, rows in answered.items()}
    shown = next(iter(rows_of_question.values()))
    texts = [
        Text(
            f"Answer of {student}",
            row["completion"],
            {"outcome": row["outcome"], "read as": row["extracted"] or "nothing"},
        )
        for student, row in rows_of_question.items()
    ]
    title = f"Answers to question {chosen[1]} of {chosen[0]}"
    yield Example(title, shown["question"], shown["answer"], texts)
