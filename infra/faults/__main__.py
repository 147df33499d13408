"""Kill and disturb the store, runs and workers; end with a table.

    python -m infra.faults [--short]

Exit status 1 if anything was lost or failed.
"""

import argparse
import logging
import os
import random
import sys
import tempfile
from functools import partial
from pathlib import Path

from flows.server import seaweedfs
from infra import s3_server
from infra.faults import s3
from infra.faults.endurance import Bench
from infra.faults.runs import Contents, Runs, beside, contents, require_same
from infra.faults.store import OPERATIONS, Trial, forked, kills
from infra.faults.tally import Tally

KILLS = 50
"""Kills of `rlt run`, and of workers and runs on a server."""
RATE = 0.05
"""Share of disturbed requests."""


def store_parts(folder: Path, endpoint: str, short: bool, seed: int) -> list[Tally]:
    """Kill operations, fail requests, and let processes race."""
    choice, remote = random.Random(seed), f"s3://{s3.BUCKET}"
    on_folder, on_s3 = Tally("kills, folder"), Tally("kills, S3")
    names = list(OPERATIONS)
    kills(on_folder, names, folder, None, 2 if short else None, choice)
    names = choice.sample(names, 2) if short else names
    kills(on_s3, names, folder, remote, 2 if short else None, choice)
    faults = Tally("operations, failing S3")
    with s3.disturbed(endpoint, 2 * RATE, seed, timeouts=not short) as counts:
        for number, name in enumerate(names if short else names * 5):
            with faults.trial(name, tries=0):
                here = f"failing-{number}"
                trial = Trial(name, folder / here, f"{remote}/{here}")
                forked(trial.execute, None)
                forked(trial.check_and_repeat)
    faults.tries = counts.total()
    races = Tally("races, folder"), Tally("races, S3")
    for race, root in zip(races, (str(folder / "race"), f"{remote}/race"), strict=True):
        target = str(folder / race.part)
        with race.trial("races", tries=0), beside(race, root, target, 0.5 if short else 30):
            pass
    return [on_folder, on_s3, faults, *races]


def run_parts(folder: Path, endpoint: str, seed: int) -> list[Tally]:
    """Kill and disturb whole runs; each must leave the bytes of an undisturbed one."""
    choice = random.Random(seed)
    plain = Runs(folder / "plain")
    reference = plain.reference()

    killed = Tally("kills, rlt run")
    with killed.trial("rlt run", tries=0):
        require_same(plain.kill(killed, KILLS, 5, choice), reference)
        plain.require_ended()

    on_server = Tally("kills, server")
    with on_server.trial("rlt up", tries=0):
        on_server.tries = forked(_kill_on_server, folder / "server", reference, seed)

    failing, root = Tally("rlt run, failing S3"), f"s3://{s3.BUCKET}/run"
    with failing.trial("rlt run", tries=0), s3.disturbed(endpoint, RATE, seed) as counts:
        plain.require_done(plain.start(root))
        failing.tries = counts.total()
    with failing.trial("its artifacts", tries=0):
        require_same(forked(contents, root), reference)

    together = Tally("runs beside gc, …")
    store = str(folder / "together")
    with together.trial("two runs", tries=0), beside(together, store, str(folder / "copy"), 120):
        plain.require_done(plain.start(store), plain.start(store, "--set", "seeds=[0, 1]"))
        require_same(contents(store), reference)
    return [killed, on_server, failing, together]


def _kill_on_server(folder: Path, reference: Contents, seed: int) -> int:
    """Return the number of kills."""
    folder.mkdir()
    bench = Bench(folder, random.Random(seed), reference)
    killed = 0.0
    try:
        bench.up()
        while killed < KILLS:
            killed += bench.compute(0, KILLS - int(killed), 6)["kills"]
            bench.clear()
    finally:
        bench.rlt("down")
    assert not bench.processes.marked(), "processes are left behind"
    return int(killed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="a sample, without whole runs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # connections that a fork leaves open
    with tempfile.TemporaryDirectory(prefix="rlt-faults-") as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        # No client of S3 is made in this process, so that it can fork.
        wait = partial(forked, seaweedfs.wait_for_bucket)
        with s3_server.serve(Path(name) / "s3", s3.BUCKET, wait) as access:
            os.environ.update(access.environment())
            endpoint = access.endpoint
            parts = store_parts(Path(name), endpoint, options.short, options.seed)
            if not options.short:
                parts += run_parts(Path(name), endpoint, options.seed)
    for part in parts:
        for line in (*part.lost, *part.failed):
            print(f"{part.part}: {line}\n", file=sys.stderr)
    print(f"{'part':24}{'tries':>8}{'lost':>8}{'failed':>8}{'seconds':>9}")
    for part in parts:
        counts = f"{part.tries:8}{len(part.lost):8}{len(part.failed):8}{part.seconds:9.0f}"
        print(f"{part.part:24}{counts}")
    sys.exit(any(part.lost or part.failed for part in parts))


if __name__ == "__main__":
    main()
