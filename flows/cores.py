"""The cores of this machine, shared by the nodes that run side by side."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Cores:
    """Hands out cores in the order of asking."""

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, cores: int) -> Iterator[None]:
        """Wait for that many cores (all of them if fewer exist), hold them inside the block."""
        cores = min(cores, self._count)
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= cores)
            self._waiting.popleft()
            self._free -= cores
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += cores
                self._changed.notify_all()
