"""`rlt reward`: what replay and explain show, write and refuse."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from flows.cli.reward import app
from rlt_core.config import RewardSpec
from rlt_core.errors import UserError
from rlt_core.reward.formula import reward_parts
from rlt_core.rows import read_rows
from rlt_core.store import Store
from tests.flows.conftest import invoke
from tests.imports import imported
from tests.sample_store import commit, sample_run, score_row, scored_training_traces

NAME = "tiny/trace-scoring[sft]@0"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run whose training traces are scored from log-probs; `sft` alone can be replayed."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    scored_training_traces(store, sample_run(store, seeds=(0,)))
    return store


def run(store, *arguments, code=0):
    return invoke(app, *arguments, "--store", store, code=code).stdout


def test_replay_says_what_changed_and_writes_every_trace(store, tmp_path):
    output = tmp_path / "replayed.parquet"
    options = ["--alpha", "0.5", "--lambda", "0.1", "--kl", "k3", "--reduction", "median"]
    (found,) = json.loads(run(store, "replay", NAME, *options, "-o", str(output), "--json"))
    manifest = store.find(NAME)
    spec = RewardSpec(
        alpha=0.5, kl_weight=0.1, kl="k3", solution_reduction="median", think_reduction="median"
    )
    assert RewardSpec.model_validate(found["reward"]) == spec
    assert (found["run"], found["label"], found["seed"]) == (manifest.ref.key, manifest.label, 0)
    rows = {row["trace_id"]: row for row in pq.read_table(output).to_pylist()}
    expected = {
        row["trace_id"]: reward_parts(
            row["student_solution_logprobs"], row["student_think_logprobs"],
            row["teacher_think_logprobs"], row["closed"], spec,
        ).reward
        for row in read_rows(store.intact(manifest), "scores")
        if row["status"] == "scored"
    }  # fmt: skip
    assert found["traces"] == len(expected) == 23 and len(rows) == 24
    assert {name: rows[name]["reward"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found["mean_after"] == pytest.approx(sum(expected.values()) / 23)
    shown = run(store, "replay", NAME, *options)
    line = next(line for line in shown.splitlines() if manifest.ref.key in line)
    assert line.split()[:4] == ["trace-scoring[sft]@0", manifest.ref.key, "23", "6"]
    assert f"{found['mean_after']:.4g}" in line and f"{found['best_changed']:.1%}" in line
    assert "alpha 0.5, lambda 0.1, kl k3, reduction median" in shown
    assert "nothing changed" in run(store, "replay", NAME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"no log-probs"),  # those of the other labels have none
        (["nothing"], "no artifact 'nothing'"),
        (["tiny/base-model"], "kind model"),
        ([NAME, "--kl", "full"], r"think_kl.*reward\.kl=full"),
        ([NAME, "--alpha", "nan"], "finite"),
        ([NAME, "--output", "replayed.csv"], r"\.parquet"),
        ([NAME, "--output", "/nowhere/replayed.parquet"], "no folder /nowhere"),
    ],
)
def test_mistakes_in_replay_are_one_clear_error(store, arguments, message):
    with pytest.raises(UserError, match=message):
        run(store, "replay", *arguments)


def test_without_a_name_the_latest_of_each_label_is_replayed(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(UserError, match="no scored traces"):
        run(store, "replay")
    names = ("student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs")
    lists = {name: [-1.0] for name in names}
    config = {"reward": RewardSpec().model_dump()}
    for label in "ba":
        rows = [score_row(1, -1.01, rank=1, **lists)]
        commit(store, f"trace-scoring[{label}]", {"scores": rows}, config=config)
    found = json.loads(run(store, "replay", "--json"))
    assert [one["label"] for one in found] == ["trace-scoring[a]", "trace-scoring[b]"]


def test_explain_shows_the_parts(store):
    scores = read_rows(store.intact(store.find(NAME)), "scores")
    row = next(row for row in scores if row["trace_id"] == "q005-2")
    shown = run(store, "explain", "q005-2", "--run", NAME)
    lines = [line.split() for line in shown.splitlines()]
    assert ["reward", f"{row['reward']:+.4f}"] in lines
    parts = [line for line in lines if line[:1] == ["max"]]
    assert parts[0][-3:] == [f"{row['kl_max']:.4f}", "-0.03", f"{-0.03 * row['kl_max']:+.4f}"]


def test_explain_finds_the_best_and_the_worst_trace(store):
    scores = read_rows(store.intact(store.find(NAME)), "scores")
    rows = sorted((row for row in scores if row["reward"] is not None), key=lambda r: r["reward"])
    own = [row for row in rows if row["question_id"] == "q005"]
    for options, row in [
        ([], rows[-1]), (["--best"], rows[-1]), (["--worst"], rows[0]),
        (["--question", "q005"], own[-1]), (["--worst", "--question", "q005"], own[0]),
    ]:  # fmt: skip
        shown = run(store, "explain", "--run", NAME, *options)
        assert shown.startswith(row["trace_id"]) and f"{row['reward']:+.4f}" in shown
    for options, message in [
        (["--question", "q05"], "did you mean 'q005'"),
        (["q005-2", "--best"], "give one of"),
        (["q005-2", "--question", "q005"], "give one of"),
    ]:
        with pytest.raises(UserError, match=message):
            run(store, "explain", "--run", NAME, *options)


def test_explain_of_what_has_no_log_probs(store):
    assert "no reward: too_long" in run(store, "explain", "q009-3")
    assert "imported: there are no log-probs" in run(store, "explain", "q000-1")
    with pytest.raises(UserError, match="nearest: q005-"):
        run(store, "explain", "q005")


def test_the_commands_need_neither_torch_nor_prefect_nor_pandas(store):
    program = (
        "from flows.cli.app import app\n"
        f"for words in (['--help'], ['replay', '--help'], ['replay', {NAME!r}], "
        "['explain', 'q005-2']): app(['reward', *words], standalone_mode=False)"
    )
    assert not imported(program, RLT_STORE=str(store))


def test_a_mistake_exits_with_2_and_one_line(store):
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", "reward", "explain", "zz", "--store", str(store)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("rlt: no trace 'zz'") and done.stderr.count("\n") == 1
