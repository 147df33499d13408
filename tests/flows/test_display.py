"""What a direct run prints: the cause of a failure is not hidden."""

from __future__ import annotations

import io
import os
import subprocess
import sys

from rich.console import Console

from flows.display import Display
from flows.runner import QUIET_PREFECT


def test_nodes_that_lack_their_inputs_are_one_line_behind_the_cause() -> None:
    out = io.StringIO()
    with Display(4, 0, Console(file=out, width=40)) as display:
        display.started("dataset-prep")
        display.failed("evaluation[rlt]@0", "not run", "it reads student-sft[rlt]@0, dataset-prep")
        display.failed("dataset-prep", "mistake", "questions.jsonl, row 3: no field 'question'")
        display.failed("report", "not run", "it reads evaluation[rlt]@0")
    _, cause, rest = out.getvalue().splitlines()
    assert cause == "mistake  dataset-prep: questions.jsonl, row 3: no field 'question'"
    assert rest == "not run  2 nodes, for want of dataset-prep: evaluation[rlt]@0, report"


def test_prefects_own_server_prints_nothing_into_a_direct_run() -> None:
    code = (
        "import logging\n"
        "from prefect.logging.configuration import setup_logging\n"
        "setup_logging()\n"
        "for name in ('prefect.server.services.task_run_recorder', 'prefect.flow_runs'):\n"
        "    logging.getLogger(name).error('a traceback about %s', name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | QUIET_PREFECT
    )
    assert done.returncode == 0, done.stderr
    assert "a traceback" not in done.stdout + done.stderr
