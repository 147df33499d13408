"""Who works on a key right now: a small file that its holder renews.

A lease keeps two attempts from doing the same work at the same time and keeps `gc` away from a
running attempt. It is not what makes commits safe: those are create-only by themselves.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rlt_core.store.files import Files

RENEW_S = 10.0
EXPIRES_S = 60.0


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
    """Whether the holder still works: renewed lately and, on this machine, still a process."""
    if now - float(str(lease["renewed_at"])) > EXPIRES_S:
        return False
    if lease["host"] != socket.gethostname():
        return True
    pid = int(str(lease["pid"]))
    return _exists(pid) and lease["started"] in (None, _process_started(pid))


class Lease:
    """Context manager: waits until nobody else holds the key, then holds it and renews."""

    def __init__(
        self,
        files: Files,
        key: str,
        name: str = "",
        waiting: Callable[[dict[str, object]], None] = lambda _: None,
    ) -> None:
        """`name` tells people what is worked on. `waiting(lease)` is called about once a second
        while another holder works; it may raise to give up."""
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
    def read(files: Files, key: str) -> dict[str, object] | None:
        """The live lease of a key, or None."""
        data = files.read(f"work/{key}/lease.json")
        if data is None:
            return None
        lease: dict[str, object] = json.loads(data)
        return lease if is_live(lease, time.time()) else None

    def __enter__(self) -> Lease:
        while not self._files.create(self._path, self._payload()):
            data = self._files.read(self._path)
            if data is None:
                continue
            lease = json.loads(data)
            if not is_live(lease, time.time()):
                self._files.remove(self._path)
                continue
            self._waiting(lease)
            time.sleep(1.0)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return self

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            self._files.write(self._path, self._payload())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._files.remove(self._path)
        self._files.prune(self._path.rpartition("/")[0])
