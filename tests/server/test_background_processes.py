"""Background processes of `rlt up`."""

import os
import sys
import time
from pathlib import Path

from flows.server.processes import Processes


def test_a_start_begins_an_empty_log_and_keeps_the_one_before(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "home")
    for said in ("first", "second", "third"):
        command = [
            sys.executable,
            "-c",
            f"import time; print('{said}', flush=True); time.sleep(60)",
        ]
        processes.start("server", command, os.environ)
        while not processes.log("server").read_text():
            time.sleep(0.02)
        processes.stop(["server"], 5)
    texts = [each.read_text() for each in sorted(processes.home.glob("server.log*"))]
    assert texts == ["third\n", "second\n"]
