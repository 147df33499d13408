"""Long work in shards that commit on their own, so that a killed run goes on where it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

from rlt_core import processes
from rlt_core.budget import Allowance, exhausted
from rlt_core.config.endpoint import Prices
from rlt_core.progress import Progress
from rlt_core.rows import write_rows
from rlt_core.store import Workspace

Item = TypeVar("Item")
GROUP = "shards"
POLL_S = 1.0
"""Seconds between two looks at the shards of other processes."""


class NoShardLeft(Exception):
    """Raised in a run that shares another run's node once no shard is left to compute."""


class _Taken(Exception):
    """Another process computes the shard or has committed it."""


@dataclass(frozen=True)
class LongWork:
    """Work that is computed in shards, by this run alone; a StageContext may share it."""

    out: Path
    """Folder of the table."""
    work: Workspace
    """Workspace of the shards."""
    progress: Progress

    @property
    def machine(self) -> int:
        """Index of this run among those that share the work; run 0 collects the table."""
        return 0

    @property
    def machines(self) -> int:
        """Number of runs that may share the work."""
        return 1

    def is_committed(self) -> bool:
        """Whether the table is in the store."""
        return False

    def allowance(self, prices: Prices | None = None) -> Allowance | None:
        """What the run's budget leaves; None: there is none."""
        return None


def in_shards(
    ctx: LongWork,
    table: str,
    items: Sequence[Item],
    size: int,
    compute: Callable[[Sequence[Item], Progress], list[dict[str, Any]]],
    length: Callable[[Item], int] = lambda _: 0,
) -> None:
    """Compute a table shard by shard, `size` items each, into `{out}/{table}/*.parquet`.

    The shard of the longest item comes first, so that work that runs out of memory does so at once;
    the table keeps the order of the items.

    Processes of this machine and runs on others take shards by lease, so that another one takes the
    shard of a lost process. In the first run every process returns once the table is there, the
    other runs raise NoShardLeft. Shards that an earlier attempt committed are not computed again.
    Raises Stopped between two shards, and UserError once the run's budget is used up and nobody is
    at a shard.
    """
    # The size is part of the name: another size cuts elsewhere.
    starts = {f"{size}-{start // size:06d}": start for start in range(0, len(items), size)}
    longest = {
        name: max(length(item) for item in items[start : start + size])
        for name, start in starts.items()
    }
    allowance = ctx.allowance()
    while left := starts.keys() - set(ctx.work.parts(GROUP)):
        missing = sorted(left, key=lambda name: (-longest[name], name))
        taken, spent = 0, None
        for name in missing:
            ctx.progress.check()
            if ctx.machine and ctx.is_committed():
                raise NoShardLeft
            if allowance and (spent := allowance.spent()):
                break
            with suppress(_Taken), _taken(ctx, name):
                start, done, began = starts[name], len(starts) - len(missing) + taken, monotonic()
                rows = compute(items[start : start + size], ctx.progress.part(done, len(starts)))
                write_rows(ctx.work.begin(GROUP, name) / f"{table}.parquet", table, rows)
                tokens = sum(row.get("completion_tokens") or 0 for row in rows)
                took = {"seconds": monotonic() - began, "completion_tokens": tokens}
                ctx.work.commit(GROUP, name, machine=ctx.machine, **took)
                taken += 1
        if spent and not any(ctx.work.is_leased(GROUP, name) for name in missing):
            done = len(starts.keys() & set(ctx.work.parts(GROUP)))
            if done < len(starts):
                raise exhausted(spent, done, len(starts), "shards")
        if not taken:
            sleep(POLL_S)
    if ctx.machine:
        raise NoShardLeft
    ctx.progress.report(len(starts), len(starts), {})  # others may have computed all of it
    processes.wait_for_all()
    if processes.rank() == 0:
        _collect(ctx, table, list(starts))
    processes.wait_for_all()


def seconds_elsewhere(ctx: LongWork) -> float:
    """Seconds that shards computed by other machines took."""
    shards = ctx.work.metrics(GROUP).values()
    return sum((shard["seconds"] for shard in shards if shard.get("machine")), 0.0)


@contextmanager
def _taken(ctx: LongWork, name: str) -> Iterator[None]:
    """Lease a shard. Raises _Taken if another process computes it or has committed it."""
    if ctx.machines * processes.count() == 1:
        yield
        return

    def waiting(_: object) -> None:
        raise _Taken

    with ctx.work.lease(GROUP, name, waiting):
        if ctx.work.has(GROUP, name):
            raise _Taken
        yield


def _collect(ctx: LongWork, table: str, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        target = ctx.out / table / f"{index:06d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ctx.work.path(GROUP, name) / f"{table}.parquet").read_bytes())
