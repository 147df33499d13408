"""Leases: a small file says which process works on a key now; its holder renews it.

A lease keeps two attempts from doing the same work at the same time and keeps `gc` away from a
running attempt. It is not what makes commits safe: those are create-only by themselves.

It is taken by an atomic create, and from a holder that is gone by an atomic swap: one of the
waiting processes gets it. Two can hold it only if the first was still at work but could not renew
for EXPIRES_S (paused, or cut off from the store); it then finds that the lease is lost, logs a
warning and leaves the new one alone.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from rlt_core.errors import UserError
from rlt_core.progress import Note
from rlt_core.store.files import Files, reason

RENEW_S = 10.0
NOTE_S = 2.0
"""Seconds between two renewals on a local disk of a lease that tells progress."""
EXPIRES_S = 60.0
"""Clocks of machines that share a store may differ by less than the difference: a lease from the
future expires like one from the past."""

log = logging.getLogger(__name__)


class _Document(BaseModel):
    """The content of a lease; a newer version may have more."""

    id: str
    name: str = ""
    host: str
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    started: str | None = None
    """Start time of the process in clock ticks since boot, which tells reused pids apart."""
    machine: str | None = None
    """Boot of a machine and PID namespace, within which the pid names the process."""
    renewed_at: float
    note: Note | None = None
    """Progress of the work, if the holder tells it."""


def _parsed(_: str, data: bytes) -> dict[str, Any]:
    return _Document.model_validate_json(data).model_dump()


def _process_started(pid: int | str) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def _machine() -> str | None:
    """Return the boot, whose random id no other machine has, and the PID namespace; None if one of
    them is unknown, or if /proc shows another namespace."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return f"{boot} {namespace}" if boot else None


def is_live(lease: dict[str, Any], now: float) -> bool:
    """Whether the holder still works: it renewed lately and, if this process can tell, exists.

    It can tell in the same boot of the same machine and in the same PID namespace only; containers
    of one machine may share a host name.
    """
    if not abs(now - lease["renewed_at"]) <= EXPIRES_S:
        return False
    if lease["machine"] is None or lease["machine"] != _machine():
        return True
    import psutil

    started = _process_started(lease["pid"])
    same = None in (lease["started"], started) or lease["started"] == started
    return psutil.pid_exists(lease["pid"]) and same


class Lease:
    """Context manager: waits until no other process holds the key, then holds and renews it."""

    def __init__(
        self,
        files: Files,
        key: str,
        name: str = "",
        waiting: Callable[[dict[str, object]], None] = lambda _: None,
        note: Callable[[], Note] | None = None,
    ) -> None:
        """`name`: the work, in messages. `waiting(lease)` is called about once a second while
        another holder works; it may raise to give up. `note`: returns the work's progress."""
        self._files = files
        self._path = f"work/{key}/lease.json"
        self._name = name
        self._waiting, self._note = waiting, note
        self._renew_s = NOTE_S if note and files.is_local else RENEW_S
        self._id = uuid.uuid4().hex
        self._done = threading.Event()

    def _payload(self) -> bytes:
        lease = {
            "id": self._id,
            "name": self._name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _process_started("self"),
            "machine": _machine(),
            "renewed_at": time.time(),
            "note": self._note and self._note().model_dump(),
        }
        return json.dumps(lease).encode()

    @staticmethod
    def read_all(files: Files) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
        """Return the live leases of a store, by key, and for each that cannot be read why."""
        paths = [f"work/{key}/lease.json" for key in files.names("work")]
        found, problems = files.load(paths, _parsed)
        leases = {path.split("/")[1]: lease for path, lease in found.items()}
        live = {key: lease for key, lease in leases.items() if is_live(lease, time.time())}
        return live, {path.split("/")[1]: problem for path, problem in problems.items()}

    @staticmethod
    def holder(files: Files, key: str) -> dict[str, object] | None:
        """The live lease of a key, if there is one."""
        found, _ = files.load([f"work/{key}/lease.json"], _parsed)
        return next((lease for lease in found.values() if is_live(lease, time.time())), None)

    def __enter__(self) -> Lease:
        while not self._files.create(self._path, self._payload()):
            data = self._files.read(self._path)
            if data is None:
                continue
            try:
                lease = _parsed(self._path, data)
            except ValueError as error:
                log.warning(
                    "%s is damaged (%s) and is taken over", self._files.full(self._path),
                    reason(error),
                )  # fmt: skip
            else:
                if is_live(lease, time.time()):
                    self._waiting(lease)
                    time.sleep(1.0)
                    continue
            if self._files.swap(self._path, data.__eq__, self._payload()):
                break
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return self

    def _is_mine(self, data: bytes) -> bool:
        try:
            return _parsed(self._path, data)["id"] == self._id
        except ValueError:
            return False

    def _renew(self) -> None:
        while not self._done.wait(self._renew_s):
            try:
                if not self._files.swap(self._path, self._is_mine, self._payload()):
                    log.warning("the lease of %s was lost: others may work on it now", self._path)
                    return
            except (UserError, OSError) as error:
                log.warning(
                    "the lease %s was not renewed and will be tried again: %s", self._path, error
                )

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        try:
            self._files.swap(self._path, self._is_mine, None)
        except (UserError, OSError) as failure:
            log.warning("the lease %s stays until it expires: %s", self._path, failure)
        self._files.prune(self._path.rpartition("/")[0])
