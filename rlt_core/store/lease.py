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
from types import TracebackType

from rlt_core.errors import UserError
from rlt_core.store.files import Files

RENEW_S = 10.0
EXPIRES_S = 60.0
"""Clocks of machines that share a store may differ by less than the difference."""

log = logging.getLogger(__name__)


def _process_started(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot (Linux), which tells reused pids apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_live(lease: dict[str, object], now: float) -> bool:
    """Whether the holder still works: it renewed lately and, on this machine, still exists."""
    if now - float(str(lease["renewed_at"])) > EXPIRES_S:
        return False
    if lease["host"] != socket.gethostname():
        return True
    pid = int(str(lease["pid"]))
    return _exists(pid) and lease["started"] in (None, _process_started(pid))


class Lease:
    """Context manager: waits until no other process holds the key, then holds and renews it."""

    def __init__(
        self,
        files: Files,
        key: str,
        name: str = "",
        waiting: Callable[[dict[str, object]], None] = lambda _: None,
    ) -> None:
        """`name`: the work, in messages. `waiting(lease)` is called about once a second while
        another holder works; it may raise to give up."""
        self._files = files
        self._path = f"work/{key}/lease.json"
        self._name = name
        self._waiting = waiting
        self._id = uuid.uuid4().hex
        self._done = threading.Event()

    def _payload(self) -> bytes:
        pid = os.getpid()
        lease = {
            "id": self._id,
            "name": self._name,
            "host": socket.gethostname(),
            "pid": pid,
            "started": _process_started(pid),
            "renewed_at": time.time(),
        }
        return json.dumps(lease).encode()

    @staticmethod
    def read_all(files: Files) -> dict[str, dict[str, object]]:
        """The live leases of a store, by key."""
        found = files.read_many(files.expand("work/*/lease.json"))
        leases = {path.split("/")[1]: json.loads(data) for path, data in found.items()}
        return {key: lease for key, lease in leases.items() if is_live(lease, time.time())}

    @staticmethod
    def holder(files: Files, key: str) -> dict[str, object] | None:
        """The live lease of a key, if there is one."""
        data = files.read(f"work/{key}/lease.json")
        lease = json.loads(data) if data else None
        return lease if lease and is_live(lease, time.time()) else None

    def __enter__(self) -> Lease:
        while not self._files.create(self._path, self._payload()):
            data = self._files.read(self._path)
            if data is None:
                continue
            lease = json.loads(data)
            if is_live(lease, time.time()):
                self._waiting(lease)
                time.sleep(1.0)
            elif self._files.swap(self._path, data.__eq__, self._payload()):
                break
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return self

    def _is_mine(self, data: bytes) -> bool:
        return bool(json.loads(data)["id"] == self._id)

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            try:
                if not self._files.swap(self._path, self._is_mine, self._payload()):
                    log.warning("the lease of %s was lost: others may work on it now", self._path)
                    return
            except (UserError, OSError) as error:
                log.warning(
                    "the lease %s was not renewed and will be tried again: %s", self._path, error
                )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        try:
            self._files.swap(self._path, self._is_mine, None)
        except (UserError, OSError) as failure:
            log.warning("the lease %s stays until it expires: %s", self._path, failure)
        self._files.prune(self._path.rpartition("/")[0])
