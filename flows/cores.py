"""Cores, or GPUs, of this machine, shared by the nodes that run side by side."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Cores:
    """Hands out cores, to the highest priority first, then in the order of asking."""

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._waiting: list[tuple[float, int]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, cores: int, priority: float = 0.0) -> Iterator[None]:
        """Wait for that many cores (all of them if fewer exist), hold them inside the block."""
        cores = min(cores, self._count)
        ticket = (-priority, next(self._numbers))
        with self._changed:
            heapq.heappush(self._waiting, ticket)
            self._changed.wait_for(lambda: self._waiting[0] == ticket and self._free >= cores)
            heapq.heappop(self._waiting)
            self._free -= cores
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += cores
                self._changed.notify_all()
