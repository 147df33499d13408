"""The grading process: gets a request as JSON, says `"begun"`, and replies with JSON.

Requests are `["grade", item]` and `["check", item]`; a reply is `{"value": …}` or `{"error": …}`.
The process ends when its connection closes, and is killed with its parent even in the middle of a
computation. Run as `python -m rlt_core.grading.worker FILE_DESCRIPTOR PARENT_PID`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlt_core.extensions import is_path, load
from rlt_core.grading.grade import GradeItem, grade, grades_itself

PR_SET_PDEATHSIG = 1
MAX_MEMORY_BYTES = 4 * 2**30
"""Address space for grading, beside what imports have mapped: a number with ten billion digits must
not exhaust the machine."""


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(0)


def _limit_memory(more: int) -> None:
    """Limit the address space to this much more than is mapped."""
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = mapped + more
        resource.setrlimit(
            resource.RLIMIT_AS,
            (limit if most == resource.RLIM_INFINITY else min(limit, most), most),
        )


def _send(connection: Connection[Any, Any], message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())


def main() -> None:
    """Serve until the connection closes."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    while True:
        try:
            operation, fields = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            item = GradeItem(**fields)
            if item.grader == "math":
                import math_verify  # noqa: F401  (slow the first time)
            elif is_path(item.grader):  # it may import torch, whose GPU libraries map much more
                _limit_memory(64 * MAX_MEMORY_BYTES)
                load(item.grader)
            _limit_memory(MAX_MEMORY_BYTES)
            _send(connection, "begun")
            value = grades_itself(item) if operation == "check" else asdict(grade(item))
            reply: dict[str, Any] = {"value": value}
        except Exception as error:  # a verifier may raise anything; the worker goes on
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        _send(connection, reply)


if __name__ == "__main__":
    main()
