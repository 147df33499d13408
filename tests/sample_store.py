"""A small store as a run leaves it, written by hand: no model computed it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from infra.sample_manifest import sample_manifest
from rlt_core.config import RewardSpec
from rlt_core.evaluation.scores import score_rows
from rlt_core.evaluation.utility import utility_by_rank
from rlt_core.prompts.format import load_format
from rlt_core.ranking import rank_ablation
from rlt_core.reward.formula import rank_rewards, reward_parts
from rlt_core.rows import read_rows, write_rows
from rlt_core.sql.schemas import TABLES
from rlt_core.store import Manifest, Ref, Store

KINDS = {
    "dataset-prep": "dataset", "base-model": "model", "teacher-sft": "model",
    "teacher-grpo": "model", "student-sft": "model", "student-grpo": "model",
    "trace-generation": "traces", "trace-scoring": "scores", "evaluation": "evaluation",
    "rank-statistics": "ranking", "report": "report", "trace-import": "traces",
    "trace-selection": "traces",
}  # fmt: skip
START = datetime(2026, 1, 1, tzinfo=UTC)


def row(table: str, **values: Any) -> dict[str, Any]:
    """A row of a table, null where nothing is given."""
    return dict.fromkeys(TABLES[table].names) | values


def commit(
    store: Store,
    label: str,
    tables: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    seed: int | None = None,
    inputs: Mapping[str, Manifest] | None = None,
    metrics: Mapping[str, float] | None = None,
    config: Mapping[str, Any] | None = None,
    shards: int = 0,
) -> Manifest:
    """Commit an artifact; with `shards`, its tables lie in that many files each."""
    stage = label.partition("[")[0]
    key = hashlib.sha256(f"{label}@{seed}".encode()).hexdigest()[:16]
    attempt = store.begin(Ref(kind=KINDS[stage], key=key))
    for table, rows in tables.items():
        if shards:
            for number, part in enumerate(np.array_split(np.array(list(rows)), shards)):
                write_rows(attempt.out / table / f"{number:05}.parquet", table, list(part))
        else:
            write_rows(attempt.out / f"{table}.parquet", table, rows)
    return store.commit(
        sample_manifest(
            attempt.ref, attempt.id, store.describe(attempt), stage=stage, label=label,
            profile="tiny", seed=seed, packages={"python": "3.11"}, metrics=dict(metrics or {}),
            config={"seed": seed, "nested": {"learning_rate": 1e-4}} | dict(config or {}),
            inputs={name: manifest.ref for name, manifest in (inputs or {}).items()},
            started_at=START, finished_at=START + timedelta(seconds=2), seconds=2.0,
        )
    )  # fmt: skip


def score_row(
    question: int, reward: float | None, sample: int = 0, **values: Any
) -> dict[str, Any]:
    """A trace of a question, scored; without a reward it was too long."""
    parts = {
        "trace_id": f"q{question:03}-{sample}", "question_id": f"q{question:03}", "sample": sample,
        "status": "too_long" if reward is None else "scored",
        "reward": reward,
        "r_ss": None if reward is None else reward / 2,
        "r_kl": None if reward is None else -reward / 6,
        "penalty": 0.0, "closed": True, "think_tokens": 20, "solution_tokens": 3,
        "student_solution_logprobs": [-0.5, -0.25],
    }  # fmt: skip
    return row("scores", **parts | values)


def eval_row(question: int, correct: bool | None, **values: Any) -> dict[str, Any]:
    """A graded completion; None: an ungradable one."""
    outcome = {True: "correct", False: "wrong", None: "ungradable"}[correct]
    common = {
        "task": "test", "question_id": f"t{question:03}", "seed": 0, "sample": 0,
        "question": f"what is {question} + 1?", "completion": f"it is {question + 1}",
        "extracted": str(question + 1), "answer": str(question + 1), "outcome": outcome,
        "finish_reason": "stop", "completion_tokens": 4,
    }  # fmt: skip
    return row("eval_samples", **common | values)


def step_rows(stage: str, rewards: Iterable[float | None], seed: int = 0) -> list[dict[str, Any]]:
    """Training steps; a reward of None is a step of SFT."""
    grpo = {"reward_std": 0.5, "zero_std_groups": 0.0}
    return [
        row("train_steps", stage=stage, seed=seed, step=step, loss=1.0 / step, reward=reward,
            seconds=1.0, **({} if reward is None else grpo))
        for step, reward in enumerate(rewards, start=1)
    ]  # fmt: skip


QUESTIONS = 12
RANKS = 4


def _evaluation(
    store: Store, variant: str, model: Manifest, rate: float, seed: int | None
) -> Manifest:
    # Question q is answered right by every model whose rate is above q's difficulty; the student
    # of the data set's traces has unlearned the first question and learned another.
    marks = [(question + 0.5) / QUESTIONS < rate for question in range(QUESTIONS)]
    if variant == "dataset":
        marks = [marks[-1], *marks[:-1]]
    samples = [
        eval_row(question, mark, model=model.ref.key, seed=seed or 0)
        for question, mark in enumerate(marks)
    ]
    value = sum(marks) / QUESTIONS
    scores = row(
        "eval_scores", task="test", seed=seed or 0, model=model.ref.key, label=variant,
        metric="avg@1", value=value, low=max(0.0, value - 0.2), high=min(1.0, value + 0.2),
        questions=QUESTIONS, samples=1, ungraded=0, grader_failed=0,
    )  # fmt: skip
    tables = {"eval_samples": samples, "eval_scores": [scores]}
    return commit(store, f"evaluation[{variant}]", tables, seed=seed, inputs={"model": model})


def evaluated(
    store: Store,
    variant: str,
    answers: Mapping[str, Any],
    seed: int | None = None,
) -> dict[str, Manifest]:
    """Commit a model and its evaluation, by name: `answers` has of each task a (Q, N) array of 1, 0
    and NaN for what the grader failed on."""
    stage = "base-model" if seed is None else "student-sft"
    model = commit(store, f"{stage}[{variant}]", {}, seed=seed)
    samples = [
        eval_row(
            question, None if np.isnan(mark) else bool(mark), task=task, sample=sample,
            model=model.ref.key,
        )
        for task, correct_QN in answers.items()
        for question, marks in enumerate(np.asarray(correct_QN, dtype=float))
        for sample, mark in enumerate(marks)
    ]  # fmt: skip
    tables = {"eval_samples": samples, "eval_scores": score_rows(samples, [], variant)}
    made = commit(store, f"evaluation[{variant}]", tables, seed=seed, inputs={"model": model})
    return {f"{one.label}@{seed}": one for one in (model, made)}


def rank_set(
    store: Store, ranked_by: str, rates: Sequence[float], seeds: Sequence[int] = (0,)
) -> dict[str, Manifest]:
    """Commit students of ranks that answer right at these rates, and their statistics."""
    prefix = "" if ranked_by == "reward" else f"{ranked_by}-"
    made: dict[str, Manifest] = {}
    for seed in seeds:
        for rank, rate in enumerate(rates, start=1):
            marks = [[(q * 7 + seed) % 20 < 20 * rate] for q in range(20)]
            made |= evaluated(store, f"{prefix}rank-{rank}", {"test": marks}, seed)
    label = f"rank-statistics[{ranked_by}]"
    made[label] = _rank_statistics(store, made, seeds, len(rates), ranked_by, 200)
    return made


def _rank_statistics(
    store: Store, made: Mapping[str, Manifest], seeds: Sequence[int], ranks: int,
    ranked_by: Any = "reward", resamples: int = 100,
) -> Manifest:  # fmt: skip
    prefix = "" if ranked_by == "reward" else f"{ranked_by}-"
    inputs = {
        (seed, rank): made[f"evaluation[{prefix}rank-{rank}]@{seed}"]
        for seed in seeds
        for rank in range(1, ranks + 1)
    }
    samples = {at: read_rows(store.intact(one), "eval_samples") for at, one in inputs.items()}
    traces = [{"rank": rank, "reward": -float(rank)} for rank in range(1, ranks + 1)]
    rows, metrics = rank_ablation(
        samples, dict.fromkeys(seeds, traces), "test", resamples, ranked_by
    )
    utilities = [
        {"seed": seed, "rank": rank, "question_id": f"q{q}", "utility": (q - 1) / (rank + q)}
        for seed in seeds
        for rank in range(1, ranks + 1)
        for q in range(4)
    ]
    utility, prediction = utility_by_rank(utilities if ranked_by == "reward" else [])
    rows = [row | {"utility": utility.get((row["seed"], row["rank"]))} for row in rows]
    named = {f"rank-{rank}@{seed}": one for (seed, rank), one in inputs.items()}
    label = f"rank-statistics[{ranked_by}]"
    return commit(store, label, {"rank_scores": rows}, inputs=named, metrics=metrics | prediction)


def _questions() -> list[dict[str, Any]]:
    return [
        row(
            "questions", question_id=f"q{number:03}", split="validation" if number < 4 else "train",
            question=f"<b>question</b> {number}", solution=str(number), answer=str(number),
            trace=f"data set ```trace``` {number}",
        )
        for number in range(10)
    ]  # fmt: skip


def _traced(
    store: Store, variant: str, rows: Sequence[Sequence[dict[str, Any]]], seed: int,
    inputs: Mapping[str, Manifest], shards: Sequence[int] = (0, 0),
    configs: Sequence[dict[str, Any]] = ({}, {}),
) -> list[Manifest]:  # fmt: skip
    """Commit traces and their scores."""
    traces, scores = rows
    generated = commit(
        store, f"trace-generation[{variant}]", {"traces": traces}, seed=seed, inputs=inputs,
        config=configs[0], shards=shards[0],
    )  # fmt: skip
    scored = commit(
        store, f"trace-scoring[{variant}]", {"scores": scores}, seed=seed,
        inputs={"traces": generated, **inputs}, config=configs[1], shards=shards[1],
    )  # fmt: skip
    return [generated, scored]


def _held_out(
    store: Store, variant: str, inputs: Mapping[str, Manifest], reward: float, seed: int
) -> list[Manifest]:
    asked = [(question, sample) for question in range(4) for sample in range(2)]
    traces = [
        row(
            "traces", trace_id=f"q{question:03}-{sample}", question_id=f"q{question:03}",
            sample=sample, text=f"{variant} explains <script>alert({question})</script>",
            closed=True,
        )
        for question, sample in asked
    ]  # fmt: skip
    scores = [
        score_row(question, reward + 0.1 * question + 0.01 * sample, sample, seed=seed)
        for question, sample in asked
    ]
    return _traced(store, variant, (traces, scores), seed, inputs, shards=(2, 0))


SPEC = RewardSpec()
TRAIN = range(4, 10)


def _train_trace(question: int, sample: int, seed: int) -> dict[str, Any]:
    """A trace of a training question: one in three ends at a wrong number, one has no words."""
    wordless = (question, sample) == (8, 3)
    tokens = 0 if wordless else 5 + (question * 7 + sample * 5) % 17
    last = question + (question + sample + seed) % 3 - 1
    return row(
        "traces", trace_id=f"q{question:03}-{sample}", question_id=f"q{question:03}", seed=seed,
        sample=sample, text="" if wordless else f"let us see: 10 or {last}", closed=not wordless,
        token_ids=[1] * tokens, finish_reason="length" if wordless else "stop",
    )  # fmt: skip


def _train_score(trace: dict[str, Any], seed: int) -> dict[str, Any]:
    """Its score, from log-probs drawn at random; the last trace of all was too long."""
    question, sample = int(trace["question_id"][1:]), trace["sample"]
    tokens, closed = len(trace["token_ids"]), trace["closed"]
    given = {"seed": seed, "closed": closed, "think_tokens": tokens}
    given["correct"] = trace["text"].endswith(f" {question}")
    if (question, sample) == (9, 3):
        return score_row(question, None, sample, **given)
    draw = np.random.default_rng([seed, question, sample])
    solution, student, teacher = (
        (-draw.exponential(size=size)).astype(np.float32) for size in (3, tokens, tokens)
    )
    parts = reward_parts(solution, student, teacher, closed, SPEC)
    return score_row(
        question, sample=sample, **given,
        student_solution_logprobs=solution.tolist(), student_think_logprobs=student.tolist(),
        teacher_think_logprobs=teacher.tolist(), **vars(parts),
    )  # fmt: skip


def scored_training_traces(
    store: Store, made: Mapping[str, Manifest], seed: int = 0, variant: str = "sft"
) -> list[Manifest]:
    """Add to a sample run some traces of each training question, scored with the reward's own
    formula and ranked: what the rank ablation reads, or with `rlt` the students."""
    traces = [_train_trace(question, sample, seed) for question in TRAIN for sample in range(4)]
    scores = [_train_score(trace, seed) for trace in traces]
    for question in TRAIN:
        group = [
            score
            for score in scores
            if score["question_id"] == f"q{question:03}" and score["status"] == "scored"
        ]
        ranks = rank_rewards([score["reward"] for score in group])
        for score, rank in zip(group, ranks, strict=True):
            score["rank"] = rank
    teacher = "teacher-sft" if variant == "sft" else "teacher-grpo"
    inputs = {"teacher": made[f"{teacher}@{seed}"], "questions": made["dataset-prep"]}
    configs = {"format": load_format("tiny").model_dump()}, {"reward": SPEC.model_dump()}
    both = _traced(store, variant, (traces, scores), seed, inputs, (0, 3), configs)
    for manifest in both:
        store.set_ref(f"tiny/{manifest.label}@{seed}", manifest.ref)
    return both


def _of_seed(
    store: Store, seed: int, questions: Manifest, base: Manifest, ranks: int
) -> dict[str, Manifest]:
    made: dict[str, Manifest] = {}

    def keep(label: str, steps: list[dict[str, Any]], **given: Any) -> Manifest:
        made[f"{label}@{seed}"] = commit(store, label, {"train_steps": steps}, seed=seed, **given)
        return made[f"{label}@{seed}"]

    given = {"questions": questions}
    losses = step_rows("teacher-sft", [None] * 12, seed)
    sft = keep("teacher-sft", losses, inputs={"model": base, **given})
    rising = step_rows("teacher-grpo", np.linspace(-3, -1, 25), seed)
    alarms = {"alarm_zero_variance": 0.0, "alarm_reward_falling": float(seed)}
    rlt = keep("teacher-grpo", rising, inputs={"model": sft}, metrics=alarms)
    for variant, teacher, reward in (("sft-held-out", sft, -3.0), ("rlt-held-out", rlt, -1.0)):
        for manifest in _held_out(store, variant, {"teacher": teacher, **given}, reward, seed):
            made[f"{manifest.label}@{seed}"] = manifest
    rates = {"rlt": 0.9, "dataset": 0.7}
    rates |= {f"rank-{rank}": 1 - 0.15 * rank for rank in range(1, ranks + 1)}
    for variant, rate in rates.items():
        losses = step_rows("student-sft", [None] * 3, seed)
        student = keep(f"student-sft[{variant}]", losses, inputs={"model": base})
        evaluation = _evaluation(store, variant, student, rate, seed)
        made[f"{evaluation.label}@{seed}"] = evaluation
    return made


def sample_run(
    store: Store, seeds: Sequence[int] = (0, 1), ranks: int = RANKS
) -> dict[str, Manifest]:
    """Commit a run of the full pipeline; returns its artifacts by their name in the graph.

    The store names them as a run of the profile `tiny` does.
    """
    dropped = [
        row("dropped", row=3, question_id="q1", reason="duplicate", detail="of row 1"),
        row("dropped", row=5, question_id="q2", reason="prompt_too_long", detail="300 tokens"),
    ]
    questions = commit(store, "dataset-prep", {"questions": _questions(), "dropped": dropped})
    base = commit(store, "base-model", {}, inputs={"questions": questions})
    evaluation = _evaluation(store, "base", base, 0.3, None)
    made = {m.label: m for m in (questions, base, evaluation)}
    for seed in seeds:
        made |= _of_seed(store, seed, questions, base, ranks)
    if ranks:
        made["rank-statistics[reward]"] = _rank_statistics(store, made, seeds, ranks)
    for name, manifest in made.items():
        store.set_ref(f"tiny/{name}", manifest.ref)
    return made
