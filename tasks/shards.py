"""Long work in shards that commit on their own, so that a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar

from rlt_core import processes
from rlt_core.progress import Progress
from rlt_core.rows import write_rows
from rlt_core.store import Workspace

Item = TypeVar("Item")
GROUP = "shards"
POLL_S = 1.0
"""Between two looks at the shards that others compute."""


class NoShardLeft(Exception):
    """Raised in a run that shares the node of another: what it came for is done."""


class _Taken(Exception):
    """Somebody else computes the shard right now."""


class LongWork(Protocol):
    """A ctx, or what else is worth shards."""

    @property
    def out(self) -> Path:
        """Where the table goes."""

    @property
    def work(self) -> Workspace:
        """Where shards wait for it."""

    @property
    def progress(self) -> Progress:
        """Progress out, the wish to stop in."""

    @property
    def machine(self) -> int:
        """Which of the runs that share the work this is; the first collects the table."""

    @property
    def machines(self) -> int:
        """How many such runs there may be."""

    def is_committed(self) -> bool:
        """Whether the table has left the workspace for the store."""


def in_shards(
    ctx: LongWork,
    table: str,
    items: Sequence[Item],
    size: int,
    compute: Callable[[Sequence[Item], Progress], list[dict[str, Any]]],
    length: Callable[[Item], int] = lambda _: 0,
) -> None:
    """Compute a table shard by shard, `size` items each, into `{out}/{table}/*.parquet`.

    The shard of the longest item comes first, so that what runs out of memory does so at once; the
    table has the order of the items all the same.

    Whoever shares the work, processes of this machine and runs on others, takes shards that nobody
    else is at; what a lost one was at is taken by another. In the first run every process returns
    once the table is there, the others raise NoShardLeft. Shards that an earlier attempt committed
    are not computed again. Raises Stopped between two.
    """
    # The size is part of the name: another size cuts elsewhere.
    starts = {f"{size}-{start // size:06d}": start for start in range(0, len(items), size)}
    longest = {
        name: max(length(item) for item in items[start : start + size])
        for name, start in starts.items()
    }
    while left := starts.keys() - set(ctx.work.parts(GROUP)):
        missing = _in_own_order(ctx, sorted(left, key=lambda name: (-longest[name], name)))
        taken = 0
        for name in missing:
            ctx.progress.check()
            if ctx.machine and ctx.is_committed():
                raise NoShardLeft
            with suppress(_Taken), _taken(ctx, name):
                start, done, began = starts[name], len(starts) - len(missing) + taken, monotonic()
                rows = compute(items[start : start + size], ctx.progress.part(done, len(starts)))
                write_rows(ctx.work.begin(GROUP, name) / f"{table}.parquet", table, rows)
                ctx.work.commit(GROUP, name, machine=ctx.machine, seconds=monotonic() - began)
                taken += 1
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
    """What the shards took that other machines computed."""
    shards = [ctx.work.manifest(GROUP, name) for name in ctx.work.parts(GROUP)]
    return sum((shard["seconds"] for shard in shards if shard.get("machine")), 0.0)


def _sharers(ctx: LongWork) -> int:
    return ctx.machines * processes.count()


def _in_own_order(ctx: LongWork, ordered: Sequence[str]) -> list[str]:
    """Each begins elsewhere, so that they seldom meet; the first at the beginning."""
    place = ctx.machine * processes.count() + processes.rank()
    first = len(ordered) * place // _sharers(ctx)
    return [*ordered[first:], *ordered[:first]]


@contextmanager
def _taken(ctx: LongWork, name: str) -> Iterator[None]:
    """Nobody else computes the shard meanwhile. Raises _Taken if another does or has done it."""
    if _sharers(ctx) == 1:
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
