"""What made the reward of one trace: its parts, its worst tokens, its rivals.

Shapes: T tokens of the explanation, S of the solution, scored padding included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from tokenizers import Tokenizer

from rlt_core.config import RewardSpec
from rlt_core.errors import UserError
from rlt_core.reward.formula import token_kl
from rlt_core.reward.replay import own_spec
from rlt_core.sql.views import dataset
from rlt_core.store import Manifest, Store

Row = dict[str, Any]
Ids = Sequence[int | None]
"""Token ids; None where only the position is known."""

WORST = 5
"""Tokens of the explanation that are shown for each reason."""
AROUND = 5
"""Tokens of context on each side."""
NEAREST = 3
GROUP = ("question_id", "seed", "teacher", "student")
"""Traces are ranked among those that share these."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A summand of the reward."""

    name: str
    value: float
    coefficient: float

    @property
    def contribution(self) -> float:
        """What it adds to the reward."""
        return self.coefficient * self.value


@dataclasses.dataclass(frozen=True)
class Token:
    """A token in its place."""

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
    """Older artifacts that have scored a trace of this id too."""
    row: Row
    """Its row of `scores`."""
    spec: RewardSpec | None
    """None where rewards were imported."""
    parts: list[Part]
    """Empty, as are the tokens, where there are no log-probs: imported, or too long."""
    worst_solution: Token | None
    surprising: list[Token]
    """Tokens of the explanation with the largest k_t."""
    unlikely: list[Token]
    """Those with the lowest log-prob under the student."""
    group: list[Row]
    """trace_id, sample, reward, rank, think_tokens of its question's traces, the best first."""


def explain(store: Store, trace_id: str, run: str | None = None) -> Explained:
    """Everything about one scored trace, of artifact `run` or of the newest that has it.

    Raises UserError for a trace that is not there, naming the nearest, and for damaged files.
    """
    manifest, elsewhere = _artifact(store, trace_id, run)
    scores = dataset(store, "scores", [manifest])
    row = _rows(scores, {"trace_id": trace_id})[0]
    names = ["trace_id", "sample", "reward", "rank", "think_tokens"]
    group = _rows(scores, {name: row[name] for name in GROUP}, names)
    group.sort(key=lambda one: (one["rank"] is None, one["rank"], one["sample"]))
    spec = own_spec(manifest) if "reward" in manifest.config else None
    found = Explained(manifest, elsewhere, row, spec, [], None, [], [], group)
    if spec is None or row["student_think_logprobs"] is None:
        return found
    return dataclasses.replace(
        found, parts=_parts(row, spec), **_worst(row, spec, *_texts(store, manifest, row))
    )


# ---------------------------------------------------------------- finding it
def _artifact(store: Store, trace_id: str, run: str | None) -> tuple[Manifest, list[Manifest]]:
    """The artifact to look in, and the others that have the trace."""
    if run is not None:
        searched = [store.find(run)]
        if searched[0].ref.kind != "scores":
            key, kind = searched[0].ref.key, searched[0].ref.kind
            raise UserError(f"--run {run}: {key} is of kind {kind}, not scores")
    else:
        searched = store.manifests("scores")
    every = dataset(store, "scores", searched)
    runs = {row["run"] for row in _rows(every, {"trace_id": trace_id}, ["run"])}
    found = [manifest for manifest in searched if manifest.ref.key in runs]
    if not found:
        where = f"{searched[0].label} ({searched[0].ref.key})" if run else f"the scores of {store}"
        raise UserError(f"no trace {trace_id!r} in {where}; {_nearest(every, trace_id)}")
    newest, *older = sorted(found, key=lambda one: one.finished_at, reverse=True)
    return newest, older


def _nearest(every: ds.Dataset, trace_id: str) -> str:
    table = _read(lambda: every.to_table(columns=["trace_id"]))
    ids = pa.table({"trace_id": pc.unique(table["trace_id"])})
    with duckdb.connect() as connection:
        connection.register("ids", ids)
        close = connection.execute(
            "select trace_id from ids order by levenshtein(trace_id, ?), trace_id limit ?",
            [trace_id, NEAREST],
        ).fetchall()
    if not close:
        return "no trace has been scored yet"
    listed = '`rlt sql "select trace_id, label from scores"` lists all'
    return f"nearest: {', '.join(name for (name,) in close)}; {listed}"


def _rows(source: ds.Dataset, where: Row, columns: list[str] | None = None) -> list[Row]:
    """Rows in which all these fields have these values."""
    condition = pc.scalar(True)
    for name, value in where.items():
        field = ds.field(name)
        condition &= field.is_null() if value is None else field == value
    table = _read(lambda: source.to_table(columns=columns, filter=condition))
    return list(table.to_pylist())


def _read(read: Callable[[], pa.Table]) -> pa.Table:
    try:
        return read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"the store cannot be read: {error}; `rlt artifacts verify` lists what is damaged"
        ) from None


# ---------------------------------------------------------------- parts and tokens
def _parts(row: Row, spec: RewardSpec) -> list[Part]:
    """The summands of equations 3 to 5."""
    kl = f"{spec.kl} of teacher and student"
    return [
        Part(f"{spec.solution_reduction} log p(solution)", row["solution_mean"], 1.0),
        Part(f"{spec.solution_extreme} log p(solution)", row["solution_min"], spec.alpha),
        Part(f"{spec.think_reduction} {kl}", row["kl_mean"], -spec.kl_weight),
        Part(f"{spec.think_extreme} {kl}", row["kl_max"], -spec.kl_weight * spec.alpha),
        Part("penalty", row["penalty"], 1.0),
    ]


def _worst(
    row: Row, spec: RewardSpec, tokenizer: Tokenizer | None, think: Ids, solution: Ids
) -> dict[str, Any]:
    """The tokens that `Explained` shows."""
    names = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")
    solution_S, student_T, teacher_T = (np.asarray(row[name], np.float64) for name in names)
    full_T = None if row["think_kl"] is None else np.asarray(row["think_kl"], np.float64)
    kl_T = token_kl(student_T, teacher_T, full_T, spec)

    def think_token(i: int) -> Token:
        here = _in_context(tokenizer, think, i)
        return Token(i, *here, float(student_T[i]), float(teacher_T[i]), float(kl_T[i]))

    worst = int(solution_S.argmin())
    return {
        "worst_solution": Token(
            worst, *_in_context(tokenizer, solution, worst), float(solution_S[worst])
        ),
        "surprising": [think_token(int(i)) for i in np.argsort(-kl_T, kind="stable")[:WORST]],
        "unlikely": [think_token(int(i)) for i in np.argsort(student_T, kind="stable")[:WORST]],
    }


def _texts(store: Store, manifest: Manifest, row: Row) -> tuple[Tokenizer | None, Ids, Ids]:
    """The teacher's tokenizer, the ids of the scored explanation and those of the solution.

    Found through what the artifact read. What has left the store, or does not fit the log-probs,
    is None: positions remain.
    """
    committed = store.manifests_of(manifest.inputs.values())
    inputs = {
        name: committed[ref.key] for name, ref in manifest.inputs.items() if ref.key in committed
    }
    tokenizer = _tokenizer(store, inputs["teacher"]) if "teacher" in inputs else None
    n_think, n_solution = (
        len(row[name]) for name in ("student_think_logprobs", "student_solution_logprobs")
    )
    think: list[int] = []
    solution: list[int] = []
    if "traces" in inputs:
        traces = dataset(store, "traces", [inputs["traces"]])
        found = _rows(traces, {"trace_id": row["trace_id"]}, ["token_ids"])
        think = found[0]["token_ids"] if found else []
    if tokenizer is not None and "questions" in inputs:
        questions = dataset(store, "questions", [inputs["questions"]])
        asked = _rows(questions, {"question_id": row["question_id"]}, ["solution"])
        tokenizer.encode_special_tokens = True  # as Renderer.encode: a user's text stays text
        text = asked[0]["solution"] if asked else ""
        padding = manifest.config.get("format", {}).get("padding", "")
        # Tokens of the padding alone are at the end, as Renderer.encode_block leaves them out.
        solution = tokenizer.encode(text + padding, add_special_tokens=False).ids[:n_solution]
    return tokenizer, _fitting(think, n_think), _fitting(solution, n_solution)


def _fitting(ids: Sequence[int | None], length: int) -> Ids:
    return ids if len(ids) == length else [None] * length


def _tokenizer(store: Store, model: Manifest) -> Tokenizer | None:
    file = "model/tokenizer.json"
    if file not in {entry.path for entry in model.files}:
        return None
    return Tokenizer.from_file(str(store.intact(model, file) / file))


def _in_context(tokenizer: Tokenizer | None, ids: Ids, i: int) -> tuple[str, str, str]:
    """Text before, of and after token i; ids where there is no tokenizer, else `?`."""
    start, end = max(0, i - AROUND), i + 1 + AROUND
    known = [one for one in ids[start:end] if one is not None]
    if tokenizer is None or len(known) < len(ids[start:end]):
        shown = ["?" if one is None else str(one) for one in ids[start:end]]
        left, right = shown[: i - start], shown[i - start + 1 :]
        return " ".join([*left, ""]), shown[i - start], " ".join(["", *right])

    def text(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False))

    # Some tokenizers drop the space in front of what they decode: so each text grows the last.
    before, with_token, whole = (text(known[:stop]) for stop in (i - start, i - start + 1, None))
    if with_token.startswith(before) and whole.startswith(with_token):
        return before, with_token[len(before) :], whole[len(with_token) :]
    parts = known[: i - start], known[i - start : i - start + 1], known[i - start + 1 :]
    return text(parts[0]), text(parts[1]), text(parts[2])  # a character is cut in two
