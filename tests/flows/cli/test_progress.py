"""What a direct run prints: the cause of a failure is not hidden."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.table import Table

from flows.cli.progress import Display
from flows.cli.run import _summary
from flows.cli.tables import print_whole
from flows.cli.terminal import Console
from flows.runner import QUIET_PREFECT
from flows.server.ephemeral import QUIET_SERVER
from rlt_core.store import Store
from tests.sample_store import commit


def test_nodes_that_lack_their_inputs_are_one_line_behind_the_cause() -> None:
    out = io.StringIO()
    with Display(4, 0, Console(file=out, width=40)) as display:
        display.started("dataset-prep")
        display.failed("evaluation[rlt]@0", "not run", "it reads student-sft[rlt]@0, dataset-prep")
        display.failed("dataset-prep", "mistake", "questions.jsonl, row 3: no field 'question'")
        display.failed("report", "not run", "it reads evaluation[rlt]@0")
    _, cause, rest = out.getvalue().splitlines()
    assert cause == "mistake  dataset-prep: questions.jsonl, row 3: no field 'question'"
    assert rest == "not run  2 nodes that need dataset-prep: evaluation[rlt]@0, report"


def test_a_narrow_terminal_cuts_no_name() -> None:
    out = io.StringIO()
    table = Table(box=None, pad_edge=False)
    names = ["trace-scoring[rlt-held-out]@0", "b" * 30]
    for name in names:
        table.add_column(name)
    table.add_row(*names)
    print_whole(Console(file=out, width=40, force_terminal=True, color_system=None), table)
    assert [line.split() for line in out.getvalue().splitlines()] == [names, names]


def test_a_runs_scores_are_not_cut_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    made = commit(store, "report", {})
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("a" * 60, "b" * 60)
    monkeypatch.setattr("rlt_core.report.terminal.summary_table", lambda _: table)
    node = SimpleNamespace(stage=SimpleNamespace(name="report"), ref=made.ref, key=made.ref.key)
    planned: Any = [SimpleNamespace(node=node)]
    _summary(store, planned)
    assert f"{'a' * 60}  {'b' * 60}\n" in capsys.readouterr().out


def test_prefects_own_server_prints_nothing_into_a_direct_run() -> None:
    code = (
        "import logging\n"
        "from prefect.logging.configuration import setup_logging\n"
        "setup_logging()\n"
        "for name in ('prefect.server.services.task_run_recorder', 'prefect.flow_runs'):\n"
        "    logging.getLogger(name).error('a traceback about %s', name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | QUIET_PREFECT | QUIET_SERVER,
    )
    assert done.returncode == 0, done.stderr
    assert "a traceback" not in done.stdout + done.stderr
