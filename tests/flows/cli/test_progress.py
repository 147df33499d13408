"""What a direct run prints: the cause of a failure is not hidden."""

import io
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.table import Table

from flows.cli.progress import Display
from flows.cli.run import _summary
from flows.cli.terminal import Console, print_whole
from rlt_core.store import Manifest, Store
from tests.sample_store import commit


def test_nodes_that_lack_their_inputs_are_one_line_behind_the_cause() -> None:
    out = io.StringIO()
    with Display(4, Console(file=out, width=40)) as display:
        display.started("dataset-prep")
        display.failed("evaluation[rlt]@0", "not run", "it reads student-sft[rlt]@0, dataset-prep")
        display.failed("dataset-prep", "mistake", "questions.jsonl, row 3: no field 'question'")
        display.failed("report", "not run", "it reads evaluation[rlt]@0")
    _, cause, rest = out.getvalue().splitlines()
    assert cause == "mistake  dataset-prep: questions.jsonl, row 3: no field 'question'"
    assert rest == "not run  2 nodes that need dataset-prep: evaluation[rlt]@0, report"


NODES = ["trace-generation[sft-held-out]@0", "teacher-grpo@0", "student-sft[rank-1]@0"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_line_of_a_run_wraps_and_no_name_is_cut(is_terminal: bool) -> None:
    """On a terminal of 80 columns; what there is no room for is left out, elsewhere nothing."""
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=is_terminal, color_system=None)
    with Display(300, console, weights=dict.fromkeys(NODES, 1.0)) as display:
        for number in range(40):
            display.started(f"{NODES[0]}{number}")
        for name in NODES:
            display.started(name)
            display.progress(name, 1, 4, {"loss": 0.123456, "tokens_per_s": 1e6, "reward": -8.06})
        display._live.refresh()
        made = SimpleNamespace(
            stage="student-grpo",
            seconds=123456.0,
            metrics={"reward_first": -8.08, "reward_last": -7.12, "unclosed": 0.94, "traces": 1e6}
            | {"alarm_over_length": 1.0},
        )
        display.finished(NODES[0], cast(Manifest, made))
    lines = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()
    assert not is_terminal or max(map(len, lines)) <= 80
    [finished] = (line for line in lines if line.lstrip().startswith("1/300  trace"))
    assert finished.split()[1:] == [NODES[0], *["34.3", "h", "reward", "-8.08", "→", "-7.12"]] or (
        not is_terminal and finished.endswith("  1000000 traces")
    )
    assert any(line.strip() == "alarm: over length, 94% have no end" for line in lines)
    assert not is_terminal or any("more" in line for line in lines), "24 lines are not enough"


def test_ctrl_c_says_how_long_the_steps_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    out = io.StringIO()
    with Display(3, Console(file=out, width=200)) as display:
        display.started("teacher-grpo@0")
        display.progress("teacher-grpo@0", 0, 0, {})  # it waited for the GPUs
        for step in range(4):
            now += 60.0 if step else 95.0  # the first one loads the model
            display.progress("teacher-grpo@0", step + 1, 40, {})
        display.started("evaluation[base]")
        now += 20.0
        display.stopping(math.inf)
        now += 99.0
        display.stopping(math.inf)
        display.stopping(0.0)
    said = out.getvalue()
    assert "stopping after the current steps; Ctrl-C again kills them" in said
    assert re.search(r"teacher-grpo@0 +a step takes 60 s, about 40 s left\n", said)
    assert re.search(r"teacher-grpo@0 +a step takes 60 s, the current one takes longer\n", said)
    assert re.search(r"evaluation\[base\] +no step has ended in 20 s\n", said)
    assert [line.split()[0] for line in said.splitlines()[-2:]] == ["killed;", "0"]


def test_a_bar_knows_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    display = Display(2, console, weights={"short": 1.0, "long": 9.0})

    def bar() -> str:
        with console.capture() as found:
            console.print(display._render())
        return found.get().splitlines()[-1]

    assert "left" not in bar()
    display.begin("short")
    now = 30.0
    display.end("short", "short")
    assert bar().startswith("  1/2 ") and bar().rstrip().endswith(
        "30 s, about 270 s left".replace("270 s", "4 min")
    )
    display.begin("long")
    display.progress("long", 1, 2, {})
    assert "30 s, about 25 s left" in bar()


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
    long = "d" * 200
    page = f"# title\n\n{long}\n\n| model | score |\n| --- | ---: |\n| {'a' * 60} | {'b' * 60} |\n"
    (tmp_path / "report.md").write_text(page)
    monkeypatch.setattr(store, "intact", lambda _: tmp_path)
    node = SimpleNamespace(stage=SimpleNamespace(name="report"), ref=made.ref, key=made.ref.key)
    planned: Any = [SimpleNamespace(node=node)]
    _summary(store, planned)
    shown = capsys.readouterr().out
    assert f"{'a' * 60}  {'b' * 60}\n" in shown and f"{long}\n" in shown
