"""`rlt up` and `rlt down`: everything that a pipeline needs, on this machine."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from flows.server import seaweedfs
from flows.server.processes import Processes, free_port
from rlt_core import gpus
from rlt_core.errors import UserError

BUCKET = "rlt"
PORT = 4200
"""Prefect's usual one."""
S3_PORT = 8333
"""Where the S3 server listens if nothing else does."""
PROFILE = "rlt"
"""The Prefect profile that makes `prefect` commands talk to this server."""
STOP_S = 40.0
"""Seconds in which workers end; their runs may checkpoint meanwhile."""
SERVER_STOP_S = 5.0
PREFECT = [sys.executable, "-m", "prefect"]

READY_S = 120.0
"""Seconds in which a server answers and a worker is online."""

Say = Callable[[str], None]


def home() -> Path:
    """Where logs, process ids and the S3 server's files are: RLT_HOME, else ~/.rlt."""
    return Path(os.environ.get("RLT_HOME", "~/.rlt")).expanduser().absolute()


@dataclass(frozen=True)
class Up:
    """What was asked to be up."""

    port: int
    store: str
    s3_port: int | None
    """None: no S3 server."""

    @property
    def api(self) -> str:
        """The server's API."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def dashboard(self) -> str:
        """The server's pages."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Of workers, and so of all runs: where server and store are."""
        found = {
            **os.environ,
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            # `python` of a run is the one that runs this.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RLT_STORE": self.store,
        }
        found.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "60")
        # SQLite has one writer: better to wait for it than to refuse.
        found.setdefault("PREFECT_SERVER_DATABASE_TIMEOUT", "60")
        return found | self.access()

    def access(self) -> dict[str, str]:
        """What opens the store."""
        if self.s3_port is None:
            return {}
        return seaweedfs.access(home() / "s3", self.s3_port).environment()


def current() -> Up | None:
    """What `rlt up` was last asked for, if its server still runs."""
    file = home() / "up.json"
    if not file.exists() or not Processes(home()).alive("server"):
        return None
    return Up(**json.loads(file.read_text()))


def gpu_limit() -> int:
    """Runs of the `gpu` pool side by side: one a GPU, or a core where there is none."""
    return len(gpus.here()) or os.cpu_count() or 1


def bring_up(wanted: Up, limit: int, say: Say) -> None:
    """Start what is not up yet. Raises UserError when something does not come up."""
    _require_no_other_server(wanted)
    processes = Processes(home())
    home().mkdir(parents=True, exist_ok=True)
    (home() / "up.json").write_text(json.dumps(asdict(wanted)))
    if wanted.s3_port is not None:
        _bring_up_s3(processes, wanted.s3_port, say)
    from flows.server import setup as setup_server

    environment = wanted.environment()
    if processes.alive("server"):
        say(f"server    is up: {wanted.dashboard}")
    else:
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(wanted.port)]
        processes.start("server", command, environment)
        wait_healthy(wanted.api, lambda: processes.alive("server"), processes.log("server"))
        say(f"server    started: {wanted.dashboard}")
    setup_server.set_up(wanted.api)
    pools, queues = " and ".join(setup_server.POOLS), ", ".join(setup_server.QUEUES)
    say(f"pools     {pools}, queues {queues}, zombie watch")
    started = {pool: _start_worker(processes, wanted, pool, limit) for pool in setup_server.POOLS}
    record = home() / "deployed.json"
    deployed = setup_server.deploy_what_changed(
        wanted.api, environment, record
    )  # while they import
    what = "all of prefect.yaml" if deployed else "already, and nothing has changed"
    say(f"deployed  {what}: rlt/<experiment> and rlt/<stage>")
    for pool, anew in started.items():
        name = _worker(pool)
        alive, log = partial(processes.alive, name), processes.log(name)
        wait_for_worker(wanted.api, pool, alive, log)
        at_once = f", {limit} runs at once" if anew and pool == "gpu" else ""
        say(f"worker    of pool {pool} {'started' if anew else 'is up'}{at_once}")
    _use_profile(wanted.api)
    say(f"store     {wanted.store}")


def wait_healthy(api: str, alive: Callable[[], bool], log: Path) -> None:
    """Return once the server answers. Raises UserError when it ends or never does."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if not alive():
            raise UserError(f"the Prefect server ended at its start; {log} says why")
        try:
            with urllib.request.urlopen(f"{api}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise UserError(f"the Prefect server did not answer within {READY_S:.0f} s; see {log}")


def wait_for_worker(api: str, pool: str, alive: Callable[[], bool], log: Path) -> None:
    """Return once a worker of the pool is online."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
    from prefect.settings import PREFECT_API_URL, temporary_settings

    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    deadline = time.monotonic() + READY_S
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            if not alive():
                raise UserError(f"the worker of pool {pool} ended at its start; {log} says why")
            if client.read_workers_for_work_pool(pool, worker_filter=online):
                return
            time.sleep(0.3)
    raise UserError(f"the worker of pool {pool} is not online after {READY_S:.0f} s; see {log}")


def _require_no_other_server(wanted: Up) -> None:
    set_ = os.environ.get("PREFECT_API_URL")
    if set_ and set_ != wanted.api:
        raise UserError(
            f"PREFECT_API_URL is {set_}; `rlt up` starts a server of its own ({wanted.api}). "
            "Unset it, or use that server: prefect --no-prompt deploy --all"
        )
    up = current()
    if up and up != wanted:
        raise UserError(
            f"up already, with port {up.port}, store {up.store}{', --s3' if up.s3_port else ''}; "
            "`rlt down` first, or ask for the same"
        )
    if not up and _answers(wanted.port):
        raise UserError(f"port {wanted.port} is taken by another program; choose one with --port")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def s3_port() -> int:
    """A port for the S3 server: the usual one if it is free."""
    return free_port() if _answers(S3_PORT) else S3_PORT


def _bring_up_s3(processes: Processes, port: int, say: Say) -> None:
    folder = home() / "s3"
    access = seaweedfs.access(folder, port)
    if processes.alive("s3"):
        say(f"s3        is up: {access.endpoint}")
        return
    processes.start("s3", seaweedfs.command(folder, port), dict(os.environ))
    seaweedfs.wait_ready(access, lambda: processes.alive("s3"))
    seaweedfs.make_bucket(access, BUCKET)
    say(f"s3        started: {access.endpoint}, keys in {folder / 'access.json'}")


def _worker(pool: str) -> str:
    return f"worker-{pool}"


def _start_worker(processes: Processes, wanted: Up, pool: str, limit: int) -> bool:
    """Whether it was not up yet."""
    name = _worker(pool)
    if processes.alive(name):
        return False
    command = [sys.executable, "-m", "flows.cli.app", "worker", "--pool", pool, "--name", name]
    if pool == "gpu":
        command += ["--limit", str(limit)]
    processes.start(name, command, wanted.environment())
    return True


def _use_profile(api: str) -> None:
    """Make `prefect` in any terminal talk to this server; remember which profile it was."""
    from prefect.settings import Profile, load_profiles, save_profiles

    profiles = load_profiles()
    if profiles.active_name != PROFILE:
        (home() / "previous-profile").write_text(profiles.active_name or "")
    from prefect.settings import PREFECT_API_URL

    if PROFILE in profiles.names:
        profiles.remove_profile(PROFILE)
    profiles.add_profile(Profile(name=PROFILE, settings={PREFECT_API_URL: api}))
    profiles.set_active(PROFILE)
    save_profiles(profiles)


def _leave_profile() -> None:
    from prefect.settings import load_profiles, save_profiles

    profiles = load_profiles()
    if PROFILE not in profiles.names:
        return
    file = home() / "previous-profile"
    previous = file.read_text() if file.exists() else ""
    if profiles.active_name == PROFILE:
        profiles.set_active(previous if previous in profiles.names else None)
    profiles.remove_profile(PROFILE)
    save_profiles(profiles)


def take_down(say: Say) -> None:
    """End the workers, then what runs, then the servers; returns once no process is left."""
    processes = Processes(home())
    found = processes.marked()
    if not found:
        say("nothing is up")
    else:
        processes.stop((_worker("cpu"), _worker("gpu")), STOP_S)  # with their runs
        processes.stop_others(STOP_S)  # what a killed worker left
        processes.stop(("server", "s3"), SERVER_STOP_S)
        processes.stop_others(0.0)
        say(f"stopped {len(found)} processes; `rlt up` goes on from the store")
    _leave_profile()
    (home() / "up.json").unlink(missing_ok=True)
