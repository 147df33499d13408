"""Rewards and ranks of committed scores under another `RewardSpec`, from their stored log-probs.

One query with the macros of `rlt_core.sql.macros` recomputes them, without a model. Log-probs
stream through DuckDB, which keeps one narrow row per trace and may spill to disk.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pydantic import ValidationError

from rlt_core.config import RewardSpec
from rlt_core.errors import UserError
from rlt_core.progress import Metrics
from rlt_core.sql import macros
from rlt_core.sql.macros import arguments, literal
from rlt_core.sql.views import dataset, sql_errors
from rlt_core.store import Manifest, Store

MEMORY = "1500MB"
"""DuckDB's own limit; batches that are read ahead come on top."""
READING = {"batch_size": 256, "batch_readahead": 4, "fragment_readahead": 1}
"""Options of the scanner: few enough rows in memory that lists of 16K tokens fit."""

KEYS = "run, trace_id, question_id, seed, teacher, student, sample, status"
GROUP = "question_id, seed, teacher, student"
"""Traces are ranked among those that share these, as in `rlt_core.scoring.assign_ranks`."""
LOGPROBS = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")

Changes = Mapping[str, Any]
"""Fields of `RewardSpec` that differ from an artifact's own spec."""


# ---------------------------------------------------------------- which artifacts
def chosen(store: Store, names: Sequence[str]) -> list[Manifest]:
    """Return the `scores` artifacts with these keys, beginnings of keys or names.

    Without names: the latest trace-scoring of each label and seed. Raises UserError for an artifact
    that is not there or has no log-probs.
    """
    if names:
        found = [store.find(name) for name in names]
        return list({manifest.ref.key: _replayable(manifest) for manifest in found}.values())
    latest: dict[tuple[str, int | None], Manifest] = {}
    for manifest in sorted(store.manifests(), key=lambda one: one.finished_at):
        if manifest.stage == "trace-scoring":
            latest[manifest.label, manifest.seed] = _replayable(manifest)
    if not latest:
        raise UserError(f"no scored traces in {store}; `rlt run trace-scoring` makes them")
    return sorted(latest.values(), key=lambda one: (one.label, one.seed or 0))


def _replayable(manifest: Manifest) -> Manifest:
    key, kind = manifest.ref.key, manifest.ref.kind
    if kind != "scores":
        raise UserError(
            f"{manifest.label} ({key}) is of kind {kind}; "
            "`rlt artifacts list --kind scores` lists what can be replayed"
        )
    if "reward" not in manifest.config:
        raise UserError(
            f"{manifest.label} ({key}) has no log-probs: imported rewards cannot be replayed; "
            "score their traces here (imports.traces)"
        )
    spec = manifest.config["reward"]
    if isinstance(spec, dict) and "function" in spec:
        raise UserError(
            f"{manifest.label} ({key}) was scored with a function of your own, which cannot be "
            "replayed; score its traces again"
        )
    return manifest


def spec_of(manifest: Manifest) -> RewardSpec:
    """Return the spec of a scoring. Raises UserError if it is not valid in this version."""
    try:
        return RewardSpec.model_validate(manifest.config["reward"])
    except ValidationError as error:
        raise UserError(
            f"{manifest.label} ({manifest.ref.key}): its reward is not valid in this version: "
            f"{error.errors()[0]['msg']}"
        ) from None


def changed(spec: RewardSpec, changes: Changes) -> RewardSpec:
    """Return the spec with these fields changed. Raises UserError for a value that is not valid."""
    for name, value in changes.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"reward.{name}={value}: give a finite number")
    try:
        return RewardSpec.model_validate(spec.model_dump() | dict(changes))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, ("reward", *problem["loc"])))
        raise UserError(f"{field}: {problem['msg'].removeprefix('Value error, ')}") from None


# ---------------------------------------------------------------- replay
@contextmanager
def replayed(
    store: Store,
    manifests: Sequence[Manifest],
    changes: Changes,
    report: Callable[[int, int, Metrics], None] = lambda done, total, metrics: None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection with the table `replayed`: one row per trace of these artifacts.

    Columns: `KEYS`, reward, r_ss, r_kl, penalty, rank, and the committed stored_reward and
    stored_rank. A trace without a reward has no rank. `report` is called with the traces read so
    far and in all. Raises UserError for log-probs that are missing or cannot be read.
    """
    total, read = sum(manifest.rows for manifest in manifests), 0

    def advance(rows: int) -> None:
        nonlocal read
        read += rows
        report(read, total, {})

    groups: dict[RewardSpec, list[Manifest]] = {}
    for manifest in manifests:
        groups.setdefault(changed(spec_of(manifest), changes), []).append(manifest)
    with (
        tempfile.TemporaryDirectory(prefix="rlt-replay-") as spill,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": spill}) as connection,
    ):
        macros.create(connection)
        for number, group in enumerate(groups.values()):
            reader = _reader(dataset(store, "scores", group), advance)
            connection.register(f"scores_{number}", reader)
        parts = " union all ".join(_rewards(spec, n) for n, spec in enumerate(groups))
        sql = f"""
            create table replayed as
            select {KEYS}, new_reward as reward, r_ss, r_kl, penalty,
              case when new_reward is not null then row_number() over (
                partition by run, {GROUP} order by new_reward desc nulls last, sample
              ) end::integer as rank,
              stored_reward, stored_rank
            from ({parts})"""
        with sql_errors(sql):
            connection.execute(sql)
        _check_complete(connection, {one.ref.key: one for one in manifests})
        yield connection


def _rewards(spec: RewardSpec, number: int) -> str:
    """The query for the new rewards of the artifacts in `scores_{number}`."""
    solution, student, teacher = LOGPROBS
    alpha, weight = literal(spec.alpha), literal(spec.kl_weight)
    think = arguments(spec, macros.THINK)
    return f"""
        select *, case when by_teacher or status <> 'scored'
          then rlt_total(r_ss, r_kl, penalty, {weight}) else r_ss + penalty end as new_reward
        from (
          select {KEYS}, reward as stored_reward, rank as stored_rank,
            scores_{number}.r_kl is not null as by_teacher,
            rlt_r_ss({solution}, {alpha}, {arguments(spec, macros.SOLUTION)}) as r_ss,
            rlt_r_kl({student}, {teacher}, {alpha}, {think}, think_kl := think_kl) as r_kl,
            case when r_ss is not null
              then rlt_penalty(closed, {arguments(spec, macros.PENALTY)}) end as penalty
          from scores_{number}
        )"""


def _reader(source: ds.Dataset, advance: Callable[[int], None]) -> pa.RecordBatchReader:
    """Return a reader of the needed columns that is a few batches ahead at most."""
    columns = [*KEYS.split(", "), "closed", "reward", "r_kl", "rank", *LOGPROBS, "think_kl"]
    scanner = source.scanner(columns=columns, **READING)

    def batches() -> Iterable[pa.RecordBatch]:
        for batch in scanner.to_batches():
            yield batch
            advance(batch.num_rows)

    return pa.RecordBatchReader.from_batches(scanner.projected_schema, batches())


def _check_complete(
    connection: duckdb.DuckDBPyConnection, manifests: Mapping[str, Manifest]
) -> None:
    """Raise UserError if a trace that had a reward has none now."""
    lost = connection.execute(
        "select run, count(*), min(trace_id) from replayed "
        "where stored_reward is not null and reward is null group by run order by run"
    ).fetchone()
    if lost:
        run, traces, first = lost
        raise UserError(
            f"{manifests[run].label} ({run}): {traces} scored traces, {first} the first, lack the "
            "log-probs, or for kl=full the column think_kl; score them again with --set "
            "reward.kl=full, or choose --kl k1 or k3"
        )


# ---------------------------------------------------------------- effect
def summaries(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Summarise the table `replayed` by artifact: run -> traces and questions with a reward, mean
    reward before and after, correlations, and the share of questions whose best trace changed.

    Spearman is Pearson's correlation of the rewards' ranks among all traces; ties share their mean
    rank. Correlations with a constant are None.
    """
    rows = connection.sql(
        f"""
        with ordered as (
          select *, {_mean_rank("stored_reward")} as stored_order,
            {_mean_rank("reward")} as new_order
          from replayed
        )
        select run, count(reward) as traces,
          count(distinct ({GROUP})) filter (reward is not null) as questions,
          avg(stored_reward) as mean_before, avg(reward) as mean_after,
          corr(stored_reward, reward) as pearson, corr(stored_order, new_order) as spearman,
          avg((stored_rank <> 1)::integer) filter (rank = 1) as best_changed
        from ordered
        group by run
        """
    )
    return {
        row["run"]: {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in rows.to_arrow_table().to_pylist()
    }


def _mean_rank(column: str) -> str:
    """Return the rank of a reward, which is null where there is none."""
    return f"""case when {column} is not null then
        rank() over (partition by run order by {column} nulls last)
        + count(*) over (partition by run, {column}) / 2 end"""
