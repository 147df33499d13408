"""The paper's experiments as a user runs them, on what a finished pipeline has left."""

import csv
from pathlib import Path

import pytest

from rlt_core.experiments import PAPER
from rlt_core.store import Store
from tests.flows.conftest import Rlt


def table(rlt: Rlt, store: Path, experiment: str) -> list[dict[str, str]]:
    """The rows of an experiment's table."""
    shown = rlt("report", experiment, "--profile", "smoke", "--store", str(store), "--path")
    assert shown.returncode == 0, shown.stderr
    with (Path(shown.stdout.strip()).parent / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(rlt: Rlt, store: Path, target: str) -> None:
    done = rlt("run", target, "--profile", "smoke", "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_comparing_traces_computes_no_more_than_the_comparison(rlt: Rlt, store: Path) -> None:
    before = {m.ref.key for m in Store(str(store)).manifests()}
    run(rlt, store, "compare-traces")
    made = {m.label: m for m in Store(str(store)).manifests() if m.ref.key not in before}
    scored = {"trace-scoring[dataset]": "the data set's own", "trace-scoring[rlt-compared]": ""}
    assert made.keys() == {"trace-import[dataset]", "report[compare-traces]", *scored}
    for label, reason in scored.items():
        config = made[label].config
        assert (config["reward"]["kl"], config.get("off_policy", "")) == ("full", reason)


@pytest.mark.slow
def test_countdown_runs_on_what_the_pipeline_left(rlt: Rlt, store: Path) -> None:
    before = {m.ref.key for m in Store(str(store)).manifests()}
    run(rlt, store, "countdown")
    made = [m for m in Store(str(store)).manifests() if m.ref.key not in before]
    assert not {m.label for m in made} & {"teacher-grpo", "student-sft[rlt]", "base-model"}
    rows = table(rlt, store, "countdown")
    assert {row["task"] for row in rows} == {"countdown"}
    assert {row["questions"] for row in rows} == {"6"}
    assert [row["model"] for row in rows if row["primary"] == "True"] == ["countdown-zero-shot"]


@pytest.mark.slow
def test_all_experiments_run(rlt: Rlt, store: Path) -> None:
    run(rlt, store, "all")
    opened = Store(str(store))
    assert {f"smoke/report[{name}]" for name in PAPER} <= set(opened.refs())
    rows = table(rlt, store, "table-1")
    quoted = {row["row"] for row in rows if row["missing"]}
    assert quoted == {"QwQ-32B", "DeepSeek-R1"}
    assert all(row["value"] or row["missing"] for row in rows if row["task"] != "mean")
    again = rlt("plan", "all", "--profile", "smoke", "--store", str(store))
    assert "0 to compute" in again.stdout
