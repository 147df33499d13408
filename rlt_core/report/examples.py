"""Sample texts: explanations of one question with their tokens, answers to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

from rlt_core.explain import Explained, take_apart
from rlt_core.explorer.heatmap import CHANNELS, channel_input, heatmap, legend
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.texts import cell, fenced, number, only_html, only_markdown
from rlt_core.report.training import AFTER, BEFORE, NAMES
from rlt_core.store import Store

SHOWN = {"reward": "reward", "r_ss": "r_SS", "r_kl": "r_KL", "penalty": "penalty"}
"""Columns of `scores` beside an explanation, and their names."""
ANSWER_COLUMNS = (
    "task", "question_id", "sample", "question", "completion", "extracted", "answer", "outcome",
)  # fmt: skip
MOST_TOKENS = 1500
"""Tokens that a page shows of a text; `rlt traces` shows all."""
EXPLORER = "http://127.0.0.1:8484"
"""Where `rlt traces` is, by default."""


def _question(title: str, question: str, solution: str | None) -> Iterator[str]:
    yield f"### {cell(title)}\n\nQuestion:\n\n{fenced(question)}"
    if solution is not None:
        yield f"Solution:\n\n{fenced(solution)}"


def _text(title: str, text: str, **facts: str) -> str:
    """A text that a model or the data set wrote."""
    known = ", ".join(f"{cell(name)} {cell(value)}" for name, value in facts.items())
    return f"**{cell(title)}**{f' ({known})' if known else ''}\n\n{fenced(text)}"


def explanations(parts: Parts, store: Store) -> list[str]:
    """The best explanation of a question, the one in the middle and the worst, as Markdown: of the
    first question by id, not picked, and of a teacher before and after RL where there are both."""
    scored = {variant: each[0] for variant, each in parts.by_variant("trace-scoring").items()}
    chosen = [scored[name] for name in (BEFORE, AFTER) if name in scored] or [*scored.values()][:1]
    rows = [
        (part, row)
        for part in chosen
        for row in part.rows("scores", "trace_id", "question_id", "closed", *SHOWN)
        if row["reward"] is not None
    ]
    asked = [{row["question_id"] for part, row in rows if part is each} for each in chosen]
    question = min(set.intersection(*asked), default=None) if asked else None
    found = parts.questions(chosen[0]).get(question) if question else None
    if found is None:
        return []
    ranked = [each for each in rows if each[1]["question_id"] == question]
    ranked.sort(key=lambda each: -each[1]["reward"])
    places = sorted({0, len(ranked) // 2, len(ranked) - 1})
    channels = "".join(channel_input(name, name == "reward") for name in CHANNELS)
    scales = "".join(map(legend, CHANNELS))
    link = f"{EXPLORER}/question/{quote(str(question), safe='')}"
    texts = [_explanation(parts, store, *ranked[at], at + 1, len(ranked)) for at in places]
    return [
        *_question(f"Question {question}", found["question"], found["solution"]),
        f"[All of its explanations]({link}), while `rlt traces` runs.",
        only_html(f"<fieldset>{channels}</fieldset>{scales}"),
        *texts,
        *([_text("The data set's own trace", found["trace"])] if found["trace"] else []),
    ]


def _explanation(parts: Parts, store: Store, part: Part, row: Row, rank: int, of: int) -> str:
    """One explanation, and the solution after it, as far as the student's log-probs go."""

    def find(table: str, run: str, name: str) -> Row | None:
        return next((one.row(table, name) for one in parts.all if one.key == run), None)

    full = find("scores", part.key, row["trace_id"])
    trace = find("traces", part.manifest.inputs["traces"].key, row["trace_id"])
    explained = take_apart(store, find, Explained(part.manifest, [], full or row, []))
    facts = {SHOWN[name]: number(row[name]) for name in SHOWN if row[name] is not None}
    title = f"Rank {rank} of {of}: {NAMES.get(part.variant, part.variant)}"
    text = trace["text"] if trace else ""
    if not explained.explanation:
        return _text(title, text, **facts, closed=str(row["closed"]).lower())
    link = f"{EXPLORER}/trace/{part.key}/{quote(row['trace_id'], safe='')}"
    cut = len(explained.explanation) - MOST_TOKENS
    more = f"<p>… {cut} more tokens: <code>rlt traces</code></p>" if cut > 0 else ""
    maps = [heatmap(each[:MOST_TOKENS]) for each in (explained.explanation, explained.solution)]
    html = (
        f'{maps[0]}{more}<p><a href="{link}">In the explorer</a>. Then the solution:</p>{maps[1]}'
    )
    shown = _text(title, text, **facts, closed=str(row["closed"]).lower())
    head, _, fence = shown.partition("\n\n")
    return f"{head}\n\n{only_markdown(fence)}{only_html(html)}"


def answers(parts: Parts, students: Sequence[str]) -> list[str]:
    """The students' answers to the first test question, as Markdown."""
    return list(_answers(parts, students))


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
