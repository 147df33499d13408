"""What made the reward of one trace: its parts, its worst tokens, the question's other traces.

Shapes: T tokens of the explanation, S of the solution, scored padding included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rlt_core.config import RewardSpec
from rlt_core.errors import UserError
from rlt_core.reward.formula import token_kl
from rlt_core.reward.replay import GROUP, spec_of
from rlt_core.sql.views import connect, sql_errors
from rlt_core.store import Manifest, Store

Row = dict[str, Any]
Ask = Callable[..., list[Row]]
"""Runs SQL with parameters."""

WORST = 5
"""Tokens of the explanation that are shown for each reason."""
AROUND = 5
"""Tokens of context on each side."""


@dataclasses.dataclass(frozen=True)
class ExplainedPart:
    """A summand of the reward."""

    name: str
    value: float
    coefficient: float

    @property
    def contribution(self) -> float:
        """The summand: coefficient times value."""
        return self.coefficient * self.value


@dataclasses.dataclass(frozen=True)
class Token:
    """A token and its context."""

    position: int
    """From 0, in the scored tokens of the explanation or the solution."""
    before: str
    text: str
    after: str
    student: float
    """Natural log-prob."""
    teacher: float | None = None
    kl: float | None = None
    """k_t, the token's part in r_KL."""


@dataclasses.dataclass(frozen=True)
class Explained:
    """A trace's reward, taken apart."""

    manifest: Manifest
    """The artifact that scored it."""
    elsewhere: list[Manifest]
    """Older artifacts that scored a trace with this id."""
    row: Row
    """The trace's row of `scores`."""
    group: list[Row]
    """trace_id, sample, reward, rank, think_tokens of the question's traces, the best first."""
    parts: list[ExplainedPart] = dataclasses.field(default_factory=list)
    """Empty, like the tokens, where there are no log-probs: imported, or too long."""
    worst_solution: Token | None = None
    surprising: list[Token] = dataclasses.field(default_factory=list)
    """Tokens of the explanation with the largest k_t."""
    unlikely: list[Token] = dataclasses.field(default_factory=list)
    """Tokens of the explanation with the lowest log-prob under the student."""


def explain(store: Store, trace_id: str, run: str | None = None) -> Explained:
    """Take apart the reward of a trace in artifact `run`, or in the newest that scored it.

    Raises UserError for a trace that is not there, naming the nearest, and for damaged files.
    """
    with connect(store) as connection:

        def ask(sql: str, *parameters: Any) -> list[Row]:
            with sql_errors(sql):
                found = connection.sql(sql, params=list(parameters)).to_arrow_table()
                return list(found.to_pylist())

        manifest, elsewhere = _artifact(store, ask, trace_id, run)
        key = manifest.ref.key
        (row,) = ask("from scores where run = ? and trace_id = ?", key, trace_id)
        same = " and ".join(f"{name} is not distinct from ?" for name in GROUP.split(", "))
        group = ask(
            f"select trace_id, sample, reward, rank, think_tokens from scores "
            f"where run = ? and {same} order by rank nulls last, sample",
            key, *(row[name] for name in GROUP.split(", ")),
        )  # fmt: skip
        found = Explained(manifest, elsewhere, row, group)
        if "reward" not in manifest.config or row["student_think_logprobs"] is None:
            return found
        spec = spec_of(manifest)
        tokens = _worst(row, spec, *_texts(store, ask, manifest, row))
    return dataclasses.replace(found, parts=_parts(row, spec), **tokens)


def _artifact(
    store: Store, ask: Ask, trace_id: str, run: str | None
) -> tuple[Manifest, list[Manifest]]:
    """Return the artifact to explain, and the others that scored the trace."""
    given = store.find(run) if run is not None else None
    if given and given.ref.kind != "scores":
        raise UserError(f"--run {run}: {given.ref.key} is of kind {given.ref.kind}, not scores")
    where = f"run = '{given.ref.key}'" if given else "true"
    rows = ask(f"select distinct run from scores where {where} and trace_id = ?", trace_id)
    if not rows:
        close = ask(
            f"select distinct trace_id, levenshtein(trace_id, ?) as distance from scores "
            f"where {where} order by distance, trace_id limit 3", trace_id,
        )  # fmt: skip
        place = f"{given.label} ({given.ref.key})" if given else f"the scores of {store}"
        hint = "no trace has been scored yet"
        if close:
            nearest = ", ".join(each["trace_id"] for each in close)
            hint = f'nearest: {nearest}; `rlt sql "select trace_id, label from scores"` lists all'
        raise UserError(f"no trace {trace_id!r} in {place}; {hint}")
    runs = {row["run"] for row in rows}
    found = [one for one in store.manifests("scores") if one.ref.key in runs]
    newest, *older = sorted(found, key=lambda one: one.finished_at, reverse=True)
    return newest, older


# ---------------------------------------------------------------- parts and tokens
def _parts(row: Row, spec: RewardSpec) -> list[ExplainedPart]:
    """Return the summands of equations 3 to 5."""
    kl = f"{spec.kl} of teacher and student"
    return [
        ExplainedPart(f"{spec.solution_reduction} log p(solution)", row["solution_mean"], 1.0),
        ExplainedPart(f"{spec.solution_extreme} log p(solution)", row["solution_min"], spec.alpha),
        ExplainedPart(f"{spec.think_reduction} {kl}", row["kl_mean"], -spec.kl_weight),
        ExplainedPart(f"{spec.think_extreme} {kl}", row["kl_max"], -spec.kl_weight * spec.alpha),
        ExplainedPart("penalty", row["penalty"], 1.0),
    ]


def _worst(
    row: Row, spec: RewardSpec, tokenizer: Tokenizer | None, think: list[int], solution: list[int]
) -> dict[str, Any]:
    """Return the tokens that `Explained` has, by field."""
    names = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")
    solution_S, student_T, teacher_T = (np.asarray(row[name], np.float64) for name in names)
    full_T = None if row["think_kl"] is None else np.asarray(row["think_kl"], np.float64)
    kl_T = token_kl(student_T, teacher_T, full_T, spec)

    def think_token(i: int) -> Token:
        texts = _in_context(tokenizer, think, i, len(student_T))
        return Token(i, *texts, float(student_T[i]), float(teacher_T[i]), float(kl_T[i]))

    worst = int(solution_S.argmin())
    texts = _in_context(tokenizer, solution, worst, len(solution_S))
    return {
        "worst_solution": Token(worst, *texts, float(solution_S[worst])),
        "surprising": [think_token(int(i)) for i in np.argsort(-kl_T, kind="stable")[:WORST]],
        "unlikely": [think_token(int(i)) for i in np.argsort(student_T, kind="stable")[:WORST]],
    }


def _texts(
    store: Store, ask: Ask, manifest: Manifest, row: Row
) -> tuple[Tokenizer | None, list[int], list[int]]:
    """Return the teacher's tokenizer, the ids of the scored explanation and of the solution.

    They come from the artifacts that the scoring read. One that has left the store, or does not fit
    the log-probs, gives None or no ids; then the tokens' positions remain.
    """
    inputs = manifest.inputs
    committed = store.manifests_of(inputs.values())
    tokenizer, think, solution = None, [], []
    if "traces" in inputs:
        sql = "select token_ids from traces where run = ? and trace_id = ?"
        traces = ask(sql, inputs["traces"].key, row["trace_id"])
        think = [one for trace in traces for one in trace["token_ids"]]
    if teacher := committed.get(inputs["teacher"].key if "teacher" in inputs else ""):
        tokenizer = _tokenizer(store, teacher)
    if tokenizer is not None and "questions" in inputs:
        sql = "select solution from questions where run = ? and question_id = ?"
        for question in ask(sql, inputs["questions"].key, row["question_id"]):
            tokenizer.encode_special_tokens = True  # as Renderer.encode: a user's text stays text
            padding = manifest.config.get("format", {}).get("padding", "")
            ids = tokenizer.encode(question["solution"] + padding, add_special_tokens=False).ids
            # Tokens of the padding alone are at the end; Renderer.encode_block omits them.
            solution = ids[: len(row["student_solution_logprobs"])]
    return tokenizer, think, solution


def _tokenizer(store: Store, model: Manifest) -> Tokenizer | None:
    file = "model/tokenizer.json"
    if file not in {entry.path for entry in model.files}:
        return None
    return Tokenizer.from_file(str(store.intact(model, file) / file))


def _in_context(
    tokenizer: Tokenizer | None, ids: Sequence[int], i: int, length: int
) -> tuple[str, str, str]:
    """Return the texts before, of and after token i of `length`.

    Where there is no tokenizer they are ids, and where `ids` does not fit the length, `?`.
    """
    start, end = max(0, i - AROUND), min(length, i + 1 + AROUND)
    known = list(ids[start:end]) if len(ids) == length else []
    if tokenizer is None or not known:
        shown = [str(one) for one in known] or ["?"] * (end - start)
        left, right = shown[: i - start], shown[i - start + 1 :]
        return " ".join([*left, ""]), shown[i - start], " ".join(["", *right])

    def text(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False))

    # Some tokenizers drop the space in front of what they decode: so each text extends the last.
    before, with_token, whole = (text(known[:stop]) for stop in (i - start, i - start + 1, None))
    if with_token.startswith(before) and whole.startswith(with_token):
        return before, with_token[len(before) :], whole[len(with_token) :]
    parts = known[: i - start], known[i - start : i - start + 1], known[i - start + 1 :]
    return text(parts[0]), text(parts[1]), text(parts[2])  # a character is split between tokens
