"""The grading process: JSON lines in on stdin, JSON lines out on stdout, one at a time.

Requests: `["prepare", grader]`, `["grade", item]`, `["check", item]`; the reply is what the
function returned, or `{"error": …}`. It ends when stdin closes, and is killed with its parent even
in the middle of a computation. Run as `python -m rlt_core.grading.worker PARENT_PID`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any

from rlt_core.extensions import is_path, load
from rlt_core.grading.grade import grade, grades_itself
from rlt_core.grading.types import GradeItem

_PR_SET_PDEATHSIG = 1
_MAX_MEMORY_BYTES = 4 * 2**30
"""Address space: a number with ten billion digits shall not take the machine down."""


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(0)


def _answer(request: list[Any]) -> Any:
    operation, value = request
    if operation == "prepare":
        if value == "math":
            import math_verify  # noqa: F401  (half a second, once)
        elif is_path(value):
            load(value)
        return None
    item = GradeItem(**value)
    return grades_itself(item) if operation == "check" else asdict(grade(item))


def main() -> None:
    """Serve until stdin closes."""
    _die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # libraries may print; the replies keep their own channel
    for line in sys.stdin:
        try:
            reply = {"value": _answer(json.loads(line))}
        except Exception as error:  # whatever a verifier raises is a reply, never the worker's end
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
