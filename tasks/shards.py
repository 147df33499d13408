"""Long work in shards that commit on their own, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rlt_core import processes
from rlt_core.control import Control
from rlt_core.rows import write_rows
from rlt_core.store import Workspace

Item = TypeVar("Item")
GROUP = "shards"


class LongWork(Protocol):
    """A job, or what else is worth shards."""

    @property
    def out(self) -> Path:
        """Where the table goes."""

    @property
    def work(self) -> Workspace:
        """Where shards wait for it."""

    @property
    def control(self) -> Control:
        """Progress out, the wish to stop in."""


def in_shards(
    job: LongWork,
    table: str,
    items: Sequence[Item],
    size: int,
    compute: Callable[[Sequence[Item], Control], list[dict[str, Any]]],
) -> None:
    """Compute a table shard by shard, `size` items each, into `{out}/{table}/*.parquet`.

    Processes that share the work take shards in turn; every one returns once the table is there.
    Shards that an earlier attempt committed are not computed again. Raises Stopped between two.
    """
    starts = range(0, len(items), size)
    committed = set(job.work.parts(GROUP))
    for index in range(processes.rank(), len(starts), processes.count()):
        start = starts[index]
        # The size is part of the name: another size cuts elsewhere.
        name = f"{size}-{index:06d}"
        if name in committed:
            continue
        job.control.check()
        rows = compute(items[start : start + size], job.control.part(index, len(starts)))
        write_rows(job.work.begin(GROUP, name) / f"{table}.parquet", table, rows)
        job.work.commit(GROUP, name)
    processes.wait_for_all()
    if processes.rank() == 0:
        _collect(job, table, size, len(starts))
    processes.wait_for_all()


def _collect(job: LongWork, table: str, size: int, shards: int) -> None:
    for index in range(shards):
        name = f"{size}-{index:06d}"
        target = job.out / table / f"{index:06d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((job.work.path(GROUP, name) / f"{table}.parquet").read_bytes())
