"""Shards that several runs share: each is computed once, whichever run is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from rlt_core.rows import read_rows, write_rows
from rlt_core.store import Store, Workspace
from tasks.shards import GROUP, NoShardLeft, in_shards, seconds_elsewhere

KEY = "0123456789abcdef"
ITEMS = [f"q{number:02d}" for number in range(23)]
SIZE = 2
SHARDS = 12


@dataclass
class Work:
    """One of the runs that share a table, and what it computed itself."""

    store: Store
    work: Workspace
    out: Path
    machine: int = 0
    machines: int = 2
    progress: Progress = field(default_factory=Progress)
    committed: bool = False
    mine: list[str] = field(default_factory=list)
    shards: int | None = None
    """Shards until nothing is left of the budget."""

    def is_committed(self) -> bool:
        return self.committed

    def allowance(self) -> Work | None:
        return self if self.shards is not None else None

    def spent(self) -> str | None:
        return "all" if len(self.mine) >= SIZE * (self.shards or 0) else None

    def compute(self, items: Sequence[str], progress: Progress) -> list[dict[str, Any]]:
        time.sleep(0.01)
        self.mine += items
        progress.report(1, 1, {})
        return [dropped(item) for item in items]

    def run(self) -> None:
        in_shards(self, "dropped", ITEMS, SIZE, self.compute)

    def table(self) -> list[str]:
        return [row["question_id"] for row in read_rows(self.out, "dropped")]


def dropped(item: str) -> dict[str, Any]:
    return {"row": int(item[1:]), "question_id": item, "reason": "duplicate", "detail": None}


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Work]:
    store = Store(str(tmp_path / "store"))

    def make(number: int = 0, **options: Any) -> Work:
        return Work(store, store.workspace(KEY), tmp_path / f"out-{number}", number, **options)

    return make


def run_until_no_shard_is_left(work: Work) -> None:
    with pytest.raises(NoShardLeft):
        work.run()


def test_two_runs_share_the_shards_and_the_first_has_them_all(
    machine: Callable[..., Work],
) -> None:
    first, second = machine(0), machine(1)
    helper = threading.Thread(target=run_until_no_shard_is_left, args=[second])
    helper.start()
    first.run()
    helper.join(20)
    assert first.table() == ITEMS
    assert sorted(first.mine + second.mine) == ITEMS, "each computed once"
    assert first.mine and second.mine
    assert not second.out.exists()


def test_a_run_that_only_shares_leaves_its_shards_to_the_first(
    machine: Callable[..., Work],
) -> None:
    first, second = machine(0), machine(1)
    run_until_no_shard_is_left(second)
    assert seconds_elsewhere(first) >= SHARDS * 0.01
    first.run()
    assert first.table() == ITEMS
    assert not first.mine


def test_it_ends_when_the_node_is_committed(machine: Callable[..., Work]) -> None:
    late = machine(1, committed=True)
    run_until_no_shard_is_left(late)
    assert not late.mine


def test_a_shard_whose_holder_was_killed_is_computed_by_another(
    machine: Callable[..., Work],
) -> None:
    first = machine(0)
    program = (
        "import time; from rlt_core.store import Store; from rlt_core.store.lease import Lease\n"
        f"with Lease(Store({str(first.store)!r}).files, '{KEY}/{GROUP}/2-000003'):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.wait()
    first.run()
    assert first.table() == ITEMS


def test_a_shard_that_another_is_at_is_waited_for(machine: Callable[..., Work]) -> None:
    first = machine(0)
    release, others = threading.Event(), ITEMS[6:8]

    def hold() -> None:
        with first.work.lease(GROUP, "2-000003", lambda _: None):
            release.wait(20)
            folder = first.work.begin(GROUP, "2-000003")
            write_rows(folder / "dropped.parquet", "dropped", [dropped(one) for one in others])
            first.work.commit(GROUP, "2-000003")

    holder = threading.Thread(target=hold)
    holder.start()
    threading.Timer(1.5, release.set).start()
    first.run()
    holder.join(20)
    assert first.table() == ITEMS
    assert not set(first.mine) & set(others)


def test_a_budget_that_is_used_up_waits_for_the_shards_under_way(
    machine: Callable[..., Work],
) -> None:
    first, second = machine(0, shards=3), machine(1, shards=2)
    release, failed = threading.Event(), []

    def slow(items: Sequence[str], progress: Progress) -> list[dict[str, Any]]:
        release.wait(20)
        return second.compute(items, progress)

    def share() -> None:
        try:
            in_shards(second, "dropped", ITEMS, SIZE, slow)
        except UserError as error:
            failed.append(str(error))

    helper = threading.Thread(target=share)
    helper.start()
    threading.Timer(1.5, release.set).start()
    with pytest.raises(UserError, match=r"^all; \d of 12 shards are done and saved"):
        first.run()
    assert release.is_set(), "the other's shard is finished"
    helper.join(20)
    assert len(first.work.parts(GROUP)) == 5 and len(failed) == 1
    first.shards = 20
    first.run()
    assert first.table() == ITEMS and len(first.mine) + len(second.mine) == len(ITEMS)


def test_a_stop_request_ends_the_wait(machine: Callable[..., Work]) -> None:
    stop = threading.Event()
    first = machine(0, progress=Progress(should_stop=stop.is_set))
    with first.work.lease(GROUP, "2-000003", lambda _: None):
        threading.Timer(1.0, stop.set).start()
        with pytest.raises(Stopped):
            first.run()


def test_the_longest_come_first_and_the_table_keeps_its_order(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    work = Work(store, store.workspace(KEY), tmp_path / "out", machines=1)
    lengths = {item: (int(item[1:]) * 7) % 23 for item in ITEMS}
    in_shards(work, "dropped", ITEMS, SIZE, work.compute, lengths.__getitem__)
    assert work.table() == ITEMS
    starts = [work.mine.index(ITEMS[start]) for start in range(0, len(ITEMS), SIZE)]
    longest = [max(lengths[item] for item in ITEMS[s : s + SIZE]) for s in range(0, 23, SIZE)]
    in_order = [each for _, each in sorted(zip(starts, longest, strict=True))]
    assert in_order == sorted(longest, reverse=True)
