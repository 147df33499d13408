"""A study, its graph and the tables of a run that never was: answers drawn from known rates."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from infra.sample_manifest import manifest_of_node
from rlt_core.graph import Node
from rlt_core.rows import write_rows
from rlt_core.store import Manifest, Store
from rlt_core.study.claims import Study
from rlt_core.study.evidence import Catalogue, Evidence, NodeEntry
from rlt_core.study.freeze import Resolved
from rlt_core.study.verdicts import Verdict, judge
from tests.sample_store import START, eval_row, score_row

STUDY = """
name = "made-up"
profile = "smoke"
seeds = [101, 102]
set = ["rank_ablation.ranks=3"]
regimes = [{ what = "a lower learning rate", seeds = [0, 1], result = "worse" }]

[[claims]]
name = "beats"
statement = "RLT traces are better."
kind = "difference"
experiment = "full-pipeline"
task = "test"
ours = "rlt"
theirs = "dataset"

[[claims]]
name = "ranks"
statement = "A better rank makes a better student."
kind = "correlation"
experiment = "full-pipeline"
task = "test"
set = "reward"
"""
SEEDS = (11, 12, 13, 14, 15)
QUESTIONS = 80
SAMPLES = 4


def study(*claims: dict, **fields) -> Study:
    """A study of claims; what every claim needs is filled in."""
    common = {"statement": "It is so.", "experiment": "full-pipeline", "task": "test"}
    given = {"name": "made-up", "profile": "smoke", "seeds": SEEDS} | fields
    return Study.model_validate(
        given | {"claims": [common | {"name": f"c{n}"} | one for n, one in enumerate(claims)]}
    )


def answers(
    rate: float,
    model: str,
    seed: int | None,
    spread: float = 0.02,
    questions: int = QUESTIONS,
    name: str | None = None,
) -> list[dict]:
    """Graded answers of a model: questions differ in difficulty, its seeds by `spread`. They are
    drawn by the model's name, its key if not given."""
    difficulty_Q = np.random.default_rng(0).normal(0, 0.2, questions)
    rng = np.random.default_rng([seed or 0, *(name or model).encode()])
    rate_Q = np.clip(rate + difficulty_Q + rng.normal(0, spread), 0, 1)
    correct_QN = rng.random((questions, SAMPLES)) < rate_Q[:, None]
    return [
        eval_row(q, bool(correct_QN[q, n]), sample=n, seed=seed or 0, model=model)
        for q in range(questions)
        for n in range(SAMPLES)
    ]


def judged(
    folder: Path,
    rates: dict[str, float],
    *claims: dict,
    untrained: Iterable[str] = ("base",),
    spread: float = 0.02,
    **fields,
) -> list[Verdict]:
    """Verdicts on models that solve these shares of the questions."""
    entries = []
    for variant, rate in rates.items():
        for seed in (None,) if variant in untrained else SEEDS:
            key = f"{variant}-{seed}"
            entries.append(
                NodeEntry(
                    name=key, key=key, stage="evaluation", variant=variant, seed=seed,
                    inputs={"model": f"model-{key}"},
                )
            )  # fmt: skip
            file = folder / "tables" / key / "eval_samples.parquet"
            write_rows(file, "eval_samples", answers(rate, f"model-{key}", seed, spread))
    one = study(*claims, **fields)
    return judge(one, Evidence(folder, Catalogue(entries), one))


# ---------------------------------------------------------------- a run that never was
def commit(store: Store, node: Node, tables: dict[str, list[dict]]) -> Manifest:
    """Commit an artifact under a node's own key."""
    attempt = store.begin(node.ref)
    for table, rows in tables.items():
        write_rows(attempt.out / f"{table}.parquet", table, rows)
    (attempt.out / "report.md").write_text("nothing\n")
    times = {"started_at": START, "finished_at": START}
    return store.commit(manifest_of_node(node, attempt.id, store.describe(attempt), **times))


RATES = {"base": 0.2, "rlt": 0.7, "dataset": 0.5, "rlt+rl": 0.72}


def commit_all(resolved: Resolved, store: Store, extra: Iterable[Node] = ()) -> None:
    """Commit every node of a study's graph, evaluations and scores with their tables."""
    for node in [*resolved.nodes, *extra]:
        tables = {}
        if node.stage.name == "evaluation":
            rank = node.variant.removeprefix("rank-")
            rate = 0.8 - 0.1 * int(rank) if rank.isdigit() else RATES[node.variant]
            model = node.inputs["model"].key
            drawn = answers(rate, model, node.seed, questions=30, name=node.variant)
            tables["eval_samples"] = drawn
        if node.stage.name == "trace-scoring":
            rows = [score_row(q, -float(rank), rank, rank=rank) for q in range(3)
                    for rank in (1, 2, 3)]  # fmt: skip
            tables["scores"] = rows
        commit(store, node, tables)
