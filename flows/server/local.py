"""`rlt up` and `rlt down`: a Prefect server, its workers and an S3 server on this machine."""

import json
import os
import secrets
import socket
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from flows.server import postgres, seaweedfs
from flows.server.processes import PRIVATE, Processes, free_port
from rlt_core import gpus
from rlt_core.errors import UserError
from rlt_core.private import home, private_folder, write_private

BUCKET = "rlt"
LOGIN = "PREFECT_API_AUTH_STRING"
PORT = 4200
"""Prefect's default port."""
PROFILE = "rlt"
"""Prefect profile that points `prefect` commands at this server."""
STOP_S = 40.0
"""Seconds in which workers end; their runs may checkpoint meanwhile."""
SERVER_STOP_S = 5.0
QUIET = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # seconds for which SQLite's writers wait
    # Every 5 s by default, which is most of an idle server's work.
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT15S",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "30",
}
"""Settings of Prefect that the user's environment may replace."""
Say = Callable[[str], None]


def auth_file() -> Path:
    """Return the file with the user and password of the API, in one line."""
    return home() / "api-login"


@dataclass(frozen=True)
class LocalServer:
    """The settings of `rlt up`."""

    port: int
    store: str
    s3_port: int | None
    """None: no S3 server."""

    @property
    def api(self) -> str:
        return f"{self.dashboard}/api"

    @property
    def dashboard(self) -> str:
        """The address of the pages."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """Return the environment of the workers, and so of all runs."""
        login = self.login()
        own = {"PREFECT_WORKER_QUERY_SECONDS": "1", "RLT_STORE": self.store}
        return QUIET | os.environ | login | locked(self.port, login[LOGIN]) | own | self.access()

    def login(self) -> dict[str, str]:
        """Return the settings of Prefect with which this user's clients reach the server."""
        return {"PREFECT_API_URL": self.api, LOGIN: auth_file().read_text().strip()}

    def access(self) -> dict[str, str]:
        """Return the environment variables with the keys of the S3 server."""
        if self.s3_port is None:
            return {}
        return seaweedfs.access(home() / "s3", self.s3_port).environment()


def locked(port: int, login: str) -> dict[str, str]:
    """Return the settings of a Prefect server that asks for a login, and that no other page in a
    browser can use."""
    origins = f"http://127.0.0.1:{port},http://localhost:{port}"
    return {
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def current() -> LocalServer | None:
    """Return the settings of the last `rlt up`, if its server is running."""
    file = home() / "up.json"
    if not file.exists() or not Processes(home()).alive("server"):
        return None
    return LocalServer(**json.loads(file.read_text()))


def s3_port() -> int:
    """Return a port for the S3 server: the usual one if it is free."""
    return free_port() if _is_open(seaweedfs.PORT) else seaweedfs.PORT


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---------------------------------------------------------------- the server that is named
def require_server() -> str | None:
    """Return the server's address, None if none is named. Raises UserError if it does not answer or
    refuses the login."""
    up, named = current(), os.environ.get("PREFECT_API_URL")
    if up and named and LOGIN not in os.environ:
        # Else Prefect would send the login of `rlt up`, from its profile, to any server.
        os.environ[LOGIN] = up.login()[LOGIN] if named == up.api else ""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return None
    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            raise UserError(
                f"PREFECT_API_URL={url}: no Prefect server answers ({error}); start it, or, to run "
                "without a server, unset the variable (`prefect config unset PREFECT_API_URL`)"
            )
        try:
            client.api_version()  # unlike the health check, for users only
        except httpx.HTTPStatusError as refused:
            raise UserError(
                f"PREFECT_API_URL={url}: the server refuses the login "
                f"({refused.response.status_code}); set {LOGIN}=USER:PASSWORD"
            ) from None
    return url


# ---------------------------------------------------------------- up
def bring_up(wanted: LocalServer, limit: int | None, say: Say) -> None:
    """Start what is not running yet, with so many runs of the pool `gpu` at once, by default one
    per GPU, else one per core. Raises UserError if a process does not become ready."""
    limit = limit or len(gpus.here()) or os.cpu_count() or 1
    _require_no_other_server(wanted)
    processes = Processes(home())
    private_folder(home())
    (home() / "up.json").write_text(json.dumps(asdict(wanted)))
    if wanted.s3_port is not None:
        _start_s3(processes, wanted.s3_port, say)
    os.environ.update(wanted.login())  # before Prefect is imported
    from flows.server import setup

    started, settings = not processes.alive("server"), dict[str, str]()
    if started or (home() / "postgres").is_dir():
        settings, which = postgres.database(processes)
        say(f"database  {which}")
    if started:
        prefect = [sys.executable, "-m", "flows.server.one_writer"]
        command = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(wanted.port)]
        processes.start("server", command, wanted.environment() | settings, PRIVATE)
        processes.wait("server", lambda: processes.listens("server", wanted.port))
        processes.wait("server", lambda: is_healthy(wanted.api))
    say(f"server    {'started' if started else 'is up'}: {wanted.dashboard}")
    setup.set_up()
    pools, queues = " and ".join(setup.POOLS), ", ".join(setup.QUEUES)
    say(f"pools     {pools}, queues {queues}, zombie watch")
    new = {pool: _start_worker(processes, wanted, pool, limit) for pool in setup.POOLS}
    setup.deploy(wanted.environment())  # while the workers import
    say("deployed  every experiment and every stage: rlt/<name>")
    for pool in setup.POOLS:
        processes.wait(f"worker-{pool}", partial(setup.has_worker, pool))
        at_once = f", {limit} runs at once" if new[pool] and pool == "gpu" else ""
        say(f"worker    of pool {pool} {'started' if new[pool] else 'is up'}{at_once}")
    _use_profile(wanted)
    say(f"store     {wanted.store}")


def is_healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2):
            return True
    except OSError:
        return False


def _require_no_other_server(wanted: LocalServer) -> None:
    """Raise UserError if another server is named or runs; make the login of the first one."""
    set_ = os.environ.get("PREFECT_API_URL")
    if set_ and set_ != wanted.api:
        raise UserError(
            f"PREFECT_API_URL is {set_}; `rlt up` starts a server of its own ({wanted.api}). "
            "Unset it, or use that server: rlt setup-server"
        )
    up, file = current(), auth_file()
    if up and (up != wanted or not file.exists()):
        raise UserError(
            f"up already, with port {up.port}, store {up.store}{', --s3' if up.s3_port else ''} "
            f"and the login in {file}; run `rlt down` first, or give the same options"
        )
    if not file.exists():
        write_private(private_folder(home()) / file.name, f"rlt:{secrets.token_urlsafe(24)}")
    if not up and _is_open(wanted.port):
        raise UserError(f"port {wanted.port} is taken by another program; choose one with --port")


def _start_s3(processes: Processes, port: int, say: Say) -> None:
    folder = home() / "s3"
    keys = seaweedfs.access(folder, port)
    if processes.alive("s3"):
        say(f"s3        is up: {keys.endpoint}")
        return
    processes.start("s3", seaweedfs.command(folder, port), os.environ, PRIVATE)
    processes.wait("s3", lambda: processes.listens("s3", port))
    alive, log = (lambda: processes.alive("s3")), processes.log("s3")
    seaweedfs.wait_for_bucket(keys, BUCKET, alive, log)
    say(f"s3        started: {keys.endpoint}, keys in {folder / 'access.json'}")


def _start_worker(processes: Processes, wanted: LocalServer, pool: str, limit: int) -> bool:
    """Return whether the worker had to be started."""
    name = f"worker-{pool}"
    if processes.alive(name):
        return False
    command = [sys.executable, "-m", "flows.cli.app", "worker", "--pool", pool, "--name", name]
    if pool == "gpu":
        command += ["--limit", str(limit)]
    processes.start(name, command, wanted.environment())
    return True


def _use_profile(server: LocalServer) -> None:
    """Make `prefect` in any terminal talk to this server; remember the profile used before."""
    from prefect.settings import Profile, get_current_settings, load_profiles, save_profiles

    profiles = load_profiles()
    if profiles.active_name != PROFILE:
        (home() / "previous-profile").write_text(profiles.active_name or "")
    if PROFILE in profiles.names:
        profiles.remove_profile(PROFILE)
    profiles.add_profile(Profile.model_validate({"name": PROFILE, "settings": server.login()}))
    profiles.set_active(PROFILE)
    file = get_current_settings().profiles_path
    if file.exists():
        file.chmod(0o600)  # as Prefect makes it
    save_profiles(profiles)


# ---------------------------------------------------------------- down
def take_down(say: Say) -> None:
    """Stop the workers, then the runs, then the servers; returns once no process is left."""
    processes = Processes(home())
    found = processes.marked()
    if not found:
        say("nothing is up")
    else:
        processes.stop(["worker-cpu", "worker-gpu"], STOP_S)  # with their runs
        processes.stop_others(STOP_S)  # runs that a killed worker left
        processes.stop(["server", "s3"], SERVER_STOP_S)
        processes.stop(["postgres"], SERVER_STOP_S)  # once its clients have left
        processes.stop_others(0.0)
        say(f"stopped {len(found)} processes; `rlt up` continues with the same store")
    _leave_profile()
    (home() / "up.json").unlink(missing_ok=True)


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
