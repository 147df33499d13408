"""Long work in shards that commit on their own, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

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

    Shards that an earlier attempt committed are not computed again. Raises Stopped between two.
    """
    starts = range(0, len(items), size)
    committed = set(job.work.parts(GROUP))
    for index, start in enumerate(starts):
        # The size is part of the name: another size cuts elsewhere.
        name = f"{size}-{index:06d}"
        if name in committed:
            continue
        job.control.check()
        rows = compute(items[start : start + size], job.control.part(index, len(starts)))
        write_rows(job.work.begin(GROUP, name) / f"{table}.parquet", table, rows)
        job.work.commit(GROUP, name)
    for index in range(len(starts)):
        name = f"{size}-{index:06d}"
        target = job.out / table / f"{index:06d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((job.work.path(GROUP, name) / f"{table}.parquet").read_bytes())
