"""What made the reward of one trace: its parts, its worst tokens, the question's other traces.

Shapes: T tokens of the explanation, S of the solution, scored padding included.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rlt_core.config import Reduction, RewardSpec
from rlt_core.errors import UserError
from rlt_core.overrides import nearest
from rlt_core.reward.formula import Floats, reward_parts, token_kl
from rlt_core.reward.replay import GROUP, LOGPROBS, chosen, spec_of
from rlt_core.sql.macros import literal
from rlt_core.sql.views import connect, sql_errors
from rlt_core.store import Manifest, Store

Row = dict[str, Any]
Ask = Callable[..., list[Row]]
"""Runs SQL with parameters."""
Find = Callable[[str, str, str], Row | None]
"""Returns a row of `traces` or `questions`: (table, artifact's key, the row's id)."""
IDS = {"traces": "trace_id", "questions": "question_id", "scores": "trace_id"}
"""Column that names a row inside an artifact, by table."""
_Texts = Callable[[int, int], tuple[str, str, str]]
"""The texts before, of and after token i of a number of tokens."""

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
    """Like `kl` None where there is no model of the teacher."""
    kl: float | None = None
    """k_t, the token's part in r_KL."""
    share: float | None = 0.0
    """What the token adds to the reward; with the penalty, all shares add up to the reward. None
    for a user's own reward function, which is no sum over tokens; `sets` is empty then, too."""
    sets: str = ""
    """The reduction whose value is this token's alone: `min` or `max`."""


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
    question: str | None = None
    """None, like empty tokens, where the questions have left the store."""
    explanation: list[Token] = dataclasses.field(default_factory=list)
    """Every token, in order."""
    solution: list[Token] = dataclasses.field(default_factory=list)
    """Every token, in order."""
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

        def find(table: str, run: str, name: str) -> Row | None:
            rows = ask(f"from {table} where run = ? and {IDS[table]} = ?", run, name)
            return rows[0] if rows else None

        return take_apart(store, find, Explained(manifest, elsewhere, row, group))


def take_apart(
    store: Store, find: Find, found: Explained, spec: RewardSpec | None = None
) -> Explained:
    """Return it with parts, texts and tokens, where there are log-probs; `spec` is that of its row
    (`replayed_row`), by default the scoring's own."""
    manifest, row = found.manifest, found.row
    if "reward" not in manifest.config or row["student_think_logprobs"] is None:
        return found
    spec = spec or spec_of(manifest)
    question, think, solution = _texts(store, find, manifest, row)
    tokens, parts = _tokens(row, spec, think, solution), _parts(row, spec)
    if "function" in manifest.config["reward"]:  # of the user's, no sum of these
        parts, tokens = [], {name: _without_share(each) for name, each in tokens.items()}
    return dataclasses.replace(found, question=question, parts=parts, **tokens)


def _without_share(found: Any) -> Any:
    if isinstance(found, list):
        return [_without_share(each) for each in found]
    return dataclasses.replace(found, share=None, sets="")


def replayed_row(row: Row, spec: RewardSpec) -> Row:
    """Return a row of `scores` with the reward and its parts under another spec."""
    if row["student_solution_logprobs"] is None:
        return row
    solution, student, teacher = (row[name] for name in LOGPROBS)
    return row | vars(
        reward_parts(solution, student, teacher, row["closed"], spec, row["think_kl"])
    )


def choose(
    store: Store, worst: bool, run: str | None = None, question: str | None = None
) -> tuple[str, str]:
    """Return the trace with the highest reward (or the lowest), and the key of its scores: of
    artifact `run`, by default of the latest of each label and seed; of one question, if given.

    Raises UserError if there is none, naming the nearest questions.
    """
    runs = [one.ref.key for one in chosen(store, [run] if run else [])]
    named = f"run in ({', '.join(map(literal, runs))})"
    order = f"reward {'asc' if worst else 'desc'}, run, trace_id"
    sql = f"""select trace_id, run from scores where {named} and isfinite(reward)
        {f"and question_id = {literal(question)}" if question else ""} order by {order} limit 1"""
    with connect(store) as connection, sql_errors(sql):
        if found := connection.sql(sql).fetchall():
            return found[0]
        known = connection.sql(f"select distinct question_id from scores where {named}").fetchall()
    if question is None:
        raise UserError(f"no trace in the scores of {store} has a reward")
    hint = nearest(question, (name for (name,) in known))
    raise UserError(f"--question {question}: no scored trace of it in {store}; {hint}")


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
    kl, alpha, weight = f"{spec.kl} of teacher and student", spec.alpha, -spec.kl_weight
    parts = [
        (f"{spec.solution_reduction} log p(solution)", row["solution_mean"], 1.0),
        (f"{spec.solution_extreme} log p(solution)", row["solution_min"], alpha),
        (f"{spec.think_reduction} {kl}", row["kl_mean"], weight),
        (f"{spec.think_extreme} {kl}", row["kl_max"], weight * alpha),
        ("penalty", row["penalty"], 1.0),
    ]
    return [ExplainedPart(*part) for part in parts if part[1] is not None]


def _tokens(row: Row, spec: RewardSpec, think: _Texts, solution: _Texts) -> dict[str, Any]:
    """Return the tokens that `Explained` has, by field."""

    def array(name: str) -> Any:
        return None if row[name] is None else np.asarray(row[name], np.float64)

    solution_S, student_T = array("student_solution_logprobs"), array("student_think_logprobs")
    teacher_T, kl_T = array("teacher_think_logprobs"), None
    if teacher_T is not None:
        kl_T = token_kl(student_T, teacher_T, array("think_kl"), spec)

    clipped_S = np.maximum(solution_S, -(spec.clip_logprob or np.inf))
    shares_S, sets_S = _shares(
        clipped_S, (spec.solution_reduction, 1.0), (spec.solution_extreme, spec.alpha)
    )
    weight = -spec.kl_weight
    shares_T, sets_T = _shares(
        np.zeros_like(student_T) if kl_T is None else kl_T,
        (spec.think_reduction, weight), (spec.think_extreme, weight * spec.alpha),
    )  # fmt: skip

    def think_token(i: int) -> Token:
        token = Token(i, *think(i, len(student_T)), float(student_T[i]))
        if teacher_T is None or kl_T is None:
            return token
        return dataclasses.replace(
            token, teacher=float(teacher_T[i]), kl=float(kl_T[i]), share=float(shares_T[i]),
            sets=sets_T.get(i, ""),
        )  # fmt: skip

    every = [think_token(i) for i in range(len(student_T))]
    answer = [
        Token(i, *solution(i, len(solution_S)), float(solution_S[i]), share=float(shares_S[i]),
              sets=sets_S.get(i, ""))
        for i in range(len(solution_S))
    ]  # fmt: skip
    by_kl: Any = [] if kl_T is None else np.argsort(-kl_T, kind="stable")
    return {
        "explanation": every,
        "solution": answer,
        "worst_solution": answer[int(solution_S.argmin())],
        "surprising": [every[i] for i in by_kl[:WORST]],
        "unlikely": [every[i] for i in np.argsort(student_T, kind="stable")[:WORST]],
    }


def _shares(values: Floats, *terms: tuple[Reduction, float]) -> tuple[Floats, dict[int, str]]:
    """Return what each value adds to the sum of weight * reduction(values), and the reduction that
    a value sets alone, by position. Of equal extremes the first is taken."""
    shares: Floats = np.zeros(len(values))
    sets: dict[int, str] = {}
    n = len(values)
    order = np.argsort(values, kind="stable")
    for reduction, weight in terms if n else ():
        if reduction in ("mean", "sum"):
            shares += weight * values / (n if reduction == "mean" else 1)
            continue
        at = {
            "min": [order[0]], "max": [values.argmax()],
            "median": [order[(n - 1) // 2], order[n // 2]],
        }[reduction]  # fmt: skip
        for i in at:
            shares[i] += weight * values[i] / len(at)
        if reduction != "median":
            sets[int(at[0])] = reduction
    return shares, sets


def _texts(
    store: Store, find: Find, manifest: Manifest, row: Row
) -> tuple[str | None, _Texts, _Texts]:
    """Return the question, and the texts of the tokens of the scored explanation and solution.

    They come from the artifacts that the scoring read. One that has left the store, or does not fit
    the log-probs, gives None or no texts; then the tokens' positions remain.
    """
    inputs = manifest.inputs
    committed = store.manifests_of(inputs.values())
    models = [committed.get(inputs[name].key) for name in ("student", "teacher") if name in inputs]
    tokenizer = next((_tokenizer(store, model) for model in models if model), None)
    padding = manifest.config.get("format", {}).get("padding", "")

    def ids_of(text: str, length: int) -> list[int]:
        if tokenizer is None:
            return []
        # Tokens of the padding alone are at the end; Renderer.encode_block omits them.
        return list(tokenizer.encode(text + padding, add_special_tokens=False).ids[:length])

    text: str | None = None
    think: _Texts = partial(_in_context, tokenizer, [])
    solution = think

    def row_of(table: str) -> Row | None:
        return find(table, inputs[table].key, row[IDS[table]]) if table in inputs else None

    if trace := row_of("traces"):
        ids = trace["token_ids"] or []
        if row["teacher_think_logprobs"] is None:  # its ids may be those of another tokenizer
            ids = ids_of(trace["text"], len(row["student_think_logprobs"]))
        think = partial(_in_context, tokenizer, ids)
        if (ends := row["think_span_ends"]) is not None:
            starts = [0, *ends[:-1]]
            pieces = [trace["text"][a:b] for a, b in zip(starts, ends, strict=True)]
            think = partial(_among, pieces)
    if question := row_of("questions"):
        text = question["question"]
        ids = ids_of(question["solution"], len(row["student_solution_logprobs"]))
        solution = partial(_in_context, tokenizer, ids)
    return text, think, solution


def _among(pieces: Sequence[str], i: int, length: int) -> tuple[str, str, str]:
    """Return the texts before, of and after piece i."""
    before, after = pieces[max(0, i - AROUND) : i], pieces[i + 1 : i + 1 + AROUND]
    return "".join(before), pieces[i], "".join(after)


def _tokenizer(store: Store, model: Manifest) -> Tokenizer | None:
    file = "model/tokenizer.json"
    if file not in {entry.path for entry in model.files}:
        return None
    return _read_tokenizer(str(store.intact(model, file) / file))


@lru_cache(maxsize=4)
def _read_tokenizer(file: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(file)
    tokenizer.encode_special_tokens = True  # as Renderer.encode: a user's text stays text
    return tokenizer


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
