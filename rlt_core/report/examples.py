"""Sample texts: explanations of one question, answers to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlt_core.report.inputs import Part, Parts, Row, first_by_question
from rlt_core.report.texts import cell, fenced
from rlt_core.report.training import AFTER, BEFORE

PARTS_OF_REWARD = ("reward", "r_ss", "r_kl", "penalty", "rank")
ANSWER_COLUMNS = (
    "task", "question_id", "sample", "question", "completion", "extracted", "answer", "outcome",
)  # fmt: skip


def examples(parts: Parts, students: Sequence[str]) -> list[str]:
    """The first held-out question with the teachers' explanations, the first test question with
    the students' answers, as Markdown: the first by id, not picked."""
    return [*_explanations(parts), *_answers(parts, students)]


def _question(title: str, question: str, solution: str | None) -> Iterator[str]:
    yield f"### {cell(title)}\n\nQuestion:\n\n{fenced(question)}"
    if solution is not None:
        yield f"Solution:\n\n{fenced(solution)}"


def _text(title: str, text: str, **facts: str) -> str:
    """A text that a model or the data set wrote."""
    known = ", ".join(f"{cell(name)} {cell(value)}" for name, value in facts.items())
    return f"**{cell(title)}**{f' ({known})' if known else ''}\n\n{fenced(text)}"


def _explanations(parts: Parts) -> Iterator[str]:
    generated, scored = (parts.by_variant(f"trace-{what}") for what in ("generation", "scoring"))
    titles = {BEFORE: "The teacher before RL", AFTER: "The teacher after RL"}
    teachers = {variant: generated[variant][0] for variant in titles if variant in generated}
    if not teachers:
        return
    first = next(iter(teachers.values()))
    asked, columns = parts.questions(first), ("trace_id", "question_id", "sample", "text", "closed")
    traces = {
        variant: first_by_question(part.rows("traces", *columns))
        for variant, part in teachers.items()
    }
    chosen = min(set(asked).intersection(*traces.values()), default=None)
    if chosen is None:
        return
    question = asked[chosen]
    title = f"Explanations of held-out question {chosen}"
    yield from _question(title, question["question"], question["solution"])
    if question["trace"]:
        yield _text("The data set's own trace", question["trace"])
    for variant in teachers:
        trace = traces[variant][chosen]
        facts = _reward(scored[variant][0], trace["trace_id"]) if variant in scored else {}
        yield _text(titles[variant], trace["text"], **facts, closed=str(trace["closed"]).lower())


def _reward(scores: Part, trace_id: str) -> dict[str, str]:
    rows = scores.rows("scores", "trace_id", "status", *PARTS_OF_REWARD)
    row = next((row for row in rows if row["trace_id"] == trace_id), {"status": "not scored"})
    if row["status"] != "scored":
        return {"reward": row["status"]}
    return {name: f"{row[name]:.4g}" for name in PARTS_OF_REWARD if row[name] is not None}


def _answers(parts: Parts, students: Sequence[str]) -> Iterator[str]:
    evaluations = parts.by_variant("evaluation")
    answers: dict[str, dict[tuple[str, str], Row]] = {}
    for student in students:
        rows = evaluations[student][0].rows("eval_samples", *ANSWER_COLUMNS)
        rows.sort(key=lambda row: -row["sample"])
        answers[student] = {(row["task"], row["question_id"]): row for row in rows}
    if not answers:
        return
    first = next(iter(answers.values()))
    common = set(first).intersection(*answers.values())
    if not common:
        return
    first_task = next(iter(first))[0]
    task, question = chosen = min(common, key=lambda name: (name[0] != first_task, name))
    title = f"Answers to question {question} of {task}"
    yield from _question(title, first[chosen]["question"], first[chosen]["answer"])
    for student, rows_by_name in answers.items():
        row = rows_by_name[chosen]
        facts = {"outcome": row["outcome"], "read as": row["extracted"] or "nothing"}
        yield _text(f"Answer of {student}", row["completion"], **facts)
