"""Rewards and ranks of committed scores under another spec, from their log-probs: no model.

Log-probs stream through DuckDB, which holds one narrow row a trace and may spill to a disk. The
formula is `rlt_core.sql.macros`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pydantic import ValidationError

from rlt_core.config import KLEstimator, Reduction, RewardSpec
from rlt_core.errors import UserError
from rlt_core.sql import macros
from rlt_core.sql.macros import arguments, literal
from rlt_core.sql.views import dataset, sql_errors
from rlt_core.store import Manifest, Store

MEMORY = "1500MB"
"""DuckDB's own; what is read ahead of it comes on top."""
BATCH_ROWS = 256
"""Rows that are read at once: few enough that lists of 16K tokens stay small, enough for speed."""
BATCHES_AHEAD, FILES_AHEAD = 4, 1

KEYS = ("run", "trace_id", "question_id", "seed", "teacher", "student", "sample", "status")
GROUP = "question_id, seed, teacher, student"
"""Traces compete if these are the same, as in `rlt_core.scoring.assign_ranks`."""
LOGPROBS = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")

Advance = Callable[[int], None]
"""Hears how many more traces have been read."""


@dataclass(frozen=True)
class Changes:
    """What is to differ from an artifact's own spec; None: nothing."""

    alpha: float | None = None
    kl_weight: float | None = None
    kl: KLEstimator | None = None
    reduction: Reduction | None = None
    """In place of the mean, in r_SS and r_KL alike."""

    def applied(self, own: RewardSpec) -> RewardSpec:
        """The spec to replay. Raises UserError for a weight that is not finite."""
        fields = {
            "alpha": self.alpha,
            "kl_weight": self.kl_weight,
            "kl": self.kl,
            "solution_reduction": self.reduction,
            "think_reduction": self.reduction,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        for name, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name}={value}: give a finite number")
        return own.model_copy(update=given)


@dataclass(frozen=True)
class Summary:
    """What a replay changed in one artifact."""

    run: str
    traces: int
    """With a reward."""
    questions: int
    mean_before: float | None = None
    mean_after: float | None = None
    pearson: float | None = None
    """Of old and new rewards; None where either never varies."""
    spearman: float | None = None
    best_changed: float | None = None
    """Share of the questions whose best trace is another one now."""


# ---------------------------------------------------------------- what to replay
def chosen(store: Store, names: Sequence[str]) -> list[Manifest]:
    """The `scores` artifacts of these keys, beginnings of keys or names.

    Without names: the latest trace-scoring of each label and seed. Raises UserError for what is
    not there or holds no log-probs.
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
            f"{manifest.label} ({key}) has no log-probs: rewards that were imported cannot be "
            "replayed; score their traces here (imports.traces)"
        )
    return manifest


def own_spec(manifest: Manifest) -> RewardSpec:
    """The spec under which an artifact was scored. Raises UserError if this version lacks it."""
    try:
        return RewardSpec.model_validate(manifest.config["reward"])
    except ValidationError as error:
        raise UserError(
            f"{manifest.label} ({manifest.ref.key}): its reward is not one of this version: "
            f"{error.errors()[0]['msg']}"
        ) from None


# ---------------------------------------------------------------- replay
@contextmanager
def replayed(
    store: Store, manifests: Sequence[Manifest], changes: Changes, advance: Advance
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the table `replayed`, a row a trace of these artifacts.

    Columns: `KEYS`, reward, r_ss, r_kl, penalty, rank, and stored_reward and stored_rank as they
    were committed. A trace without a reward has no rank. Raises UserError for log-probs that are
    not there or cannot be read.
    """
    specs = [changes.applied(_with_kl(manifest, changes)) for manifest in manifests]
    with (
        tempfile.TemporaryDirectory(prefix="rlt-replay-") as spill,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": spill}) as connection,
    ):
        macros.create(connection)
        for manifest, spec in zip(manifests, specs, strict=True):
            columns = [*KEYS, "closed", "reward", "rank", *LOGPROBS]
            if spec.kl == "full":
                columns.append("think_kl")
            source = dataset(store, "scores", [manifest])
            connection.register("scores", _reader(source, columns, advance))
            new = manifest is manifests[0]
            sql = f"{'create table' if new else 'insert into'} replayed {_replay(spec, new)}"
            with sql_errors(sql):
                connection.execute(sql).fetchall()
            connection.unregister("scores")
            _check_complete(connection, manifest, spec)
        yield connection


def _with_kl(manifest: Manifest, changes: Changes) -> RewardSpec:
    """An artifact's own spec, if the KL that is asked for can be had from it."""
    own = own_spec(manifest)
    if changes.kl == "full" and own.kl != "full":
        raise UserError(_no_full_kl(manifest))
    return own


def _no_full_kl(manifest: Manifest) -> str:
    return (
        f"{manifest.label} ({manifest.ref.key}) has no full-vocabulary KL (column think_kl): score "
        "it with --set reward.kl=full first, or take --kl k1 or k3"
    )


def _reader(source: ds.Dataset, columns: list[str], advance: Advance) -> pa.RecordBatchReader:
    """The columns, a few batches ahead of who reads them and no more."""
    scanner = source.scanner(
        columns=columns,
        batch_size=BATCH_ROWS,
        batch_readahead=BATCHES_AHEAD,
        fragment_readahead=FILES_AHEAD,
    )

    def batches() -> Iterable[pa.RecordBatch]:
        for batch in scanner.to_batches():
            yield batch
            advance(batch.num_rows)

    return pa.RecordBatchReader.from_batches(scanner.projected_schema, batches())


def _replay(spec: RewardSpec, new: bool) -> str:
    """The query of `replayed` over `scores`; `new`: as a table's definition."""
    solution, student, teacher = LOGPROBS
    alpha, kl_weight = literal(spec.alpha), literal(spec.kl_weight)
    think = arguments(spec, macros.THINK)
    if spec.kl == "full":
        think += ", think_kl := think_kl"
    return f"""{"as" if new else ""}
        with parts as (
          select *,
            rlt_r_ss({solution}, {alpha}, {arguments(spec, macros.SOLUTION)}) as r_ss,
            rlt_r_kl({student}, {teacher}, {alpha}, {think}) as r_kl,
            case when r_ss is not null
              then rlt_penalty(closed, {arguments(spec, macros.PENALTY)}) end as penalty
          from scores
        ),
        rewarded as (
          select {", ".join(KEYS)}, rlt_total(r_ss, r_kl, penalty, {kl_weight}) as new_reward,
            r_ss, r_kl, penalty, reward as stored_reward, rank as stored_rank
          from parts
        )
        select {", ".join(KEYS)}, new_reward as reward, r_ss, r_kl, penalty,
          case when new_reward is not null then row_number() over (
            partition by {GROUP} order by new_reward desc nulls last, sample
          ) end::integer as rank,
          stored_reward, stored_rank
        from rewarded"""


def _check_complete(
    connection: duckdb.DuckDBPyConnection, manifest: Manifest, spec: RewardSpec
) -> None:
    """Raises UserError if a trace that had a reward has none now."""
    ((lost, first),) = connection.execute(
        "select count(*), min(trace_id) from replayed "
        "where run = ? and stored_reward is not null and reward is null",
        [manifest.ref.key],
    ).fetchall()
    if lost:
        if spec.kl == "full":
            raise UserError(_no_full_kl(manifest))
        raise UserError(
            f"{manifest.label} ({manifest.ref.key}): {lost} scored traces, {first} the first, "
            "lack log-probs; score them anew"
        )


# ---------------------------------------------------------------- what changed
def summaries(
    connection: duckdb.DuckDBPyConnection, manifests: Sequence[Manifest]
) -> list[Summary]:
    """What changed in each of the artifacts of the table `replayed`.

    Spearman: Pearson of the ranks of the rewards among all traces, ties sharing their mean rank.
    """
    rows = connection.execute(
        f"""
        with ranked as (
          select *,
            {_mean_rank("stored_reward")} as stored_order,
            {_mean_rank("reward")} as new_order
          from replayed
          where reward is not null
        )
        select run, count(*), count(distinct ({GROUP})), avg(stored_reward), avg(reward),
          corr(stored_reward, reward), corr(stored_order, new_order),
          avg((stored_rank <> 1)::integer) filter (rank = 1)
        from ranked
        group by run
        """
    ).fetchall()
    found = {row[0]: Summary(*row[:3], *map(_finite, row[3:])) for row in rows}
    keys = [manifest.ref.key for manifest in manifests]
    return [found.get(key, Summary(key, 0, 0)) for key in keys]


def _mean_rank(column: str) -> str:
    return (
        f"rank() over (partition by run order by {column}) "
        f"+ count(*) over (partition by run, {column}) / 2"
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
