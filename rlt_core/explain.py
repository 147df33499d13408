"""What made the reward of one trace: its parts and its worst tokens.

Shapes: T tokens of the explanation, S of the solution, scored padding included.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rlt_core.config import Reduction, RewardSpec
from rlt_core.errors import UserError
from rlt_core.overrides import nearest
from rlt_core.reward.formula import Floats, reward_parts, token_kl
from rlt_core.reward.replay import LOGPROBS, chosen, spec_of
from rlt_core.sql.views import connect, sql_errors
from rlt_core.store import Manifest, Store

Row = dict[str, Any]
Ask = Callable[..., list[Row]]
"""Runs SQL with parameters."""
Find = Callable[[str, str, str], Row | None]
"""Returns a row of `traces` or `questions`: (table, artifact's key, the row's id)."""
IDS = {"traces": "trace_id", "questions": "question_id", "scores": "trace_id"}
"""Column that names a row inside an artifact, by table."""

AROUND = 5
"""Tokens before a token that its text is decoded after."""


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
    """A token of the explanation or the solution."""

    position: int
    """From 0, in the scored tokens."""
    text: str
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
    row: Row
    """The trace's row of `scores`."""
    parts: list[ExplainedPart] = dataclasses.field(default_factory=list)
    """Empty, like the tokens, where there are no log-probs: imported, or too long."""
    question: str | None = None
    """None, like empty tokens, where the questions have left the store."""
    explanation: list[Token] = dataclasses.field(default_factory=list)
    """Every token, in order."""
    solution: list[Token] = dataclasses.field(default_factory=list)
    """Every token, in order."""

    @property
    def worst_solution(self) -> Token | None:
        """The solution's token with the lowest log-prob."""
        return min(self.solution, key=lambda token: token.student, default=None)

    @property
    def most_surprising(self) -> Token | None:
        """The explanation's token with the largest k_t."""
        known = (token for token in self.explanation if token.kl is not None)
        return max(known, key=lambda token: token.kl or 0.0, default=None)


def explain(
    store: Store,
    trace_id: str | None = None,
    run: str | None = None,
    worst: bool = False,
    question: str | None = None,
) -> Explained:
    """Take apart the reward of a trace in artifact `run`, or in the newest that scored it; without
    its id that of the trace with the highest reward, or the lowest (of a question).

    Raises UserError for a trace or question that is not there, naming the nearest, and for damaged
    files.
    """
    with connect(store) as connection:

        def ask(sql: str, *parameters: Any) -> list[Row]:
            with sql_errors(sql):
                found = connection.sql(sql, params=list(parameters)).to_arrow_table()
                return list(found.to_pylist())

        if trace_id is None:
            trace_id, run = _choose(store, ask, run, worst, question)
        manifest = _artifact(store, ask, trace_id, run)
        (row,) = ask("from scores where run = ? and trace_id = ?", manifest.ref.key, trace_id)

        def find(table: str, run: str, name: str) -> Row | None:
            rows = ask(f"from {table} where run = ? and {IDS[table]} = ?", run, name)
            return rows[0] if rows else None

        return take_apart(store, find, Explained(manifest, row))


def take_apart(
    store: Store, find: Find, found: Explained, spec: RewardSpec | None = None
) -> Explained:
    """Return it with parts, texts and tokens, where there are log-probs; `spec` is that of its row
    (`replayed_row`), by default the scoring's own."""
    manifest, row = found.manifest, found.row
    if "reward" not in manifest.config or row["student_think_logprobs"] is None:
        return found
    spec = spec or spec_of(manifest)
    is_sum = "function" not in manifest.config["reward"]  # the user's is no sum of these
    question, think, answer = _texts(store, find, manifest, row)
    explanation, solution = _tokens(row, spec, think, answer, is_sum)
    return dataclasses.replace(
        found, question=question, parts=_parts(row, spec) if is_sum else [],
        explanation=explanation, solution=solution,
    )  # fmt: skip


def replayed_row(row: Row, spec: RewardSpec) -> Row:
    """Return a row of `scores` with the reward and its parts under another spec."""
    if row["student_solution_logprobs"] is None:
        return row
    solution, student, teacher = (row[name] for name in LOGPROBS)
    return row | vars(
        reward_parts(solution, student, teacher, row["closed"], spec, row["think_kl"])
    )


def _choose(
    store: Store, ask: Ask, run: str | None, worst: bool, question: str | None
) -> tuple[str, str]:
    """Return the trace with the highest reward (or the lowest), and the key of its scores: of
    artifact `run`, by default of the latest of each label and seed; of one question, if given."""
    runs = [one.ref.key for one in chosen(store, [run] if run else [])]
    found = ask(
        f"""select trace_id, run from scores where list_contains(?, run) and isfinite(reward)
        and question_id = coalesce(?, question_id)
        order by reward {"asc" if worst else "desc"}, run, trace_id limit 1""", runs, question,
    )  # fmt: skip
    if found:
        return found[0]["trace_id"], found[0]["run"]
    if question is None:
        raise UserError(f"no trace in the scores of {store} has a reward")
    known = ask("select distinct question_id from scores where list_contains(?, run)", runs)
    hint = nearest(question, (row["question_id"] for row in known))
    raise UserError(f"--question {question}: no scored trace of it in {store}; {hint}")


def _artifact(store: Store, ask: Ask, trace_id: str, run: str | None) -> Manifest:
    """Return the newest artifact (or `run`) that scored the trace."""
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
    found = (one for one in store.manifests("scores") if one.ref.key in runs)
    return max(found, key=lambda one: one.finished_at)


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


def _tokens(
    row: Row, spec: RewardSpec, think: Sequence[str], answer: Sequence[str], is_sum: bool
) -> tuple[list[Token], list[Token]]:
    """Return the tokens of the explanation and of the solution, from their texts; without shares
    where the reward is no sum over tokens."""

    def array(name: str) -> Any:
        return None if row[name] is None else np.asarray(row[name], np.float64)

    def tokens(texts: Sequence[str], shared: tuple[Floats, dict[int, str]], **values: Any) -> Any:
        shares, sets = shared
        columns = {name: each.tolist() for name, each in values.items()}
        found = []
        for i, text in enumerate(texts):
            own = (
                {"share": float(shares[i]), "sets": sets.get(i, "")} if is_sum else {"share": None}
            )
            found.append(Token(i, text, **{name: one[i] for name, one in columns.items()}, **own))
        return found

    solution_S, student_T = array("student_solution_logprobs"), array("student_think_logprobs")
    clipped_S = np.maximum(solution_S, -(spec.clip_logprob or np.inf))
    of_solution = _shares(
        clipped_S, (spec.solution_reduction, 1.0), (spec.solution_extreme, spec.alpha)
    )
    solution = tokens(answer, of_solution, student=solution_S)
    if (teacher_T := array("teacher_think_logprobs")) is None:
        return tokens(think, (np.zeros_like(student_T), {}), student=student_T), solution
    kl_T = token_kl(student_T, teacher_T, array("think_kl"), spec)
    weight = -spec.kl_weight
    of_think = _shares(
        kl_T, (spec.think_reduction, weight), (spec.think_extreme, weight * spec.alpha)
    )
    return tokens(think, of_think, student=student_T, teacher=teacher_T, kl=kl_T), solution


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
) -> tuple[str | None, list[str], list[str]]:
    """Return the question, and the texts of the tokens of the scored explanation and solution, from
    the artifacts that the scoring read. Where one has left the store, the question is None and a
    token's text is its id, or `?`."""
    inputs = manifest.inputs
    committed = store.manifests_of(inputs.values())
    models = [committed.get(inputs[name].key) for name in ("student", "teacher") if name in inputs]
    tokenizer = next((_tokenizer(store, model) for model in models if model), None)
    padding = manifest.config.get("format", {}).get("padding", "")
    T, S = (len(row[f"student_{name}_logprobs"]) for name in ("think", "solution"))

    def ids_of(text: str, length: int) -> list[int]:
        if tokenizer is None:
            return []
        # Tokens of the padding alone are at the end; Renderer.encode_block omits them.
        return list(tokenizer.encode(text + padding, add_special_tokens=False).ids[:length])

    def row_of(table: str) -> Row | None:
        return find(table, inputs[table].key, row[IDS[table]]) if table in inputs else None

    trace, question = row_of("traces"), row_of("questions")
    ids = (trace["token_ids"] or []) if trace else []
    if trace and row["teacher_think_logprobs"] is None:  # its ids may be of another tokenizer
        ids = ids_of(trace["text"], T)
    think = _pieces(tokenizer, ids, T)
    if trace and row["think_span_ends"] is not None:
        spans = itertools.pairwise([0, *row["think_span_ends"]])
        think = [trace["text"][start:end] for start, end in spans]
    solution = _pieces(tokenizer, ids_of(question["solution"], S) if question else [], S)
    return str(question["question"]) if question else None, think, solution


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


def _pieces(tokenizer: Tokenizer | None, ids: Sequence[int], length: int) -> list[str]:
    """Return the text of each of `length` tokens; `?` where `ids` does not fit the length."""
    if tokenizer is None or len(ids) != length:
        return [f"{one} " for one in ids] if len(ids) == length else ["?"] * length

    def text(part: Sequence[int]) -> str:
        return str(tokenizer.decode(list(part), skip_special_tokens=False))

    pieces = []
    for i in range(length):
        # Some tokenizers drop the space in front of what they decode: so the text extends another.
        start = max(0, i - AROUND)
        before, both = text(ids[start:i]), text(ids[start : i + 1])
        is_whole = both.startswith(before)  # else a character is split between tokens
        pieces.append(both[len(before) :] if is_whole else text(ids[i : i + 1]))
    return pieces
