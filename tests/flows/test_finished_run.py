"""Commands on a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlt_core.stages import STAGES
from rlt_core.store import Store
from tests.flows.conftest import Rlt

ON_DEMAND = {"trace-import", "trace-refinement", "score-import"}


def test_every_stage_committed_and_every_file_is_intact(smoke_store: Path) -> None:
    manifests = list(Store(str(smoke_store)).manifests())
    assert {manifest.stage for manifest in manifests} == set(STAGES) - ON_DEMAND
    store = Store(str(smoke_store))
    assert [problem for manifest in manifests for problem in store.verify(manifest)] == []
    assert store.orphans() == [] and store.working() == {}
    assert store.files.names("work") == []


def test_again_is_all_hits(rlt: Rlt, smoke_store: Path) -> None:
    before = {m.ref.key: m.attempt for m in Store(str(smoke_store)).manifests()}
    done = rlt("run", "--profile", "smoke", "--store", str(smoke_store))
    assert done.returncode == 0, done.stderr
    assert "report.md" in done.stdout and "evaluation" not in done.stderr
    assert {m.ref.key: m.attempt for m in Store(str(smoke_store)).manifests()} == before


def test_the_config_of_the_run_plans_the_same_nodes(rlt_inside: Rlt, smoke_store: Path) -> None:
    (file,) = (smoke_store / "runs").glob("*.json")
    done = rlt_inside("plan", "--config", str(file), "--store", str(smoke_store), "--json")
    rows = json.loads(done.stdout)
    assert len(rows) > 20 and all(row["hit"] for row in rows)


def test_plan_names_the_changed_field(rlt_inside: Rlt, smoke_store: Path) -> None:
    arguments = ("plan", "--profile", "smoke", "--store", str(smoke_store))
    done = rlt_inside(*arguments, "--set", "teacher_grpo.learning_rate=2e-6", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["teacher-grpo@0"]["changes"] == ["grpo.learning_rate: 0.0001 → 2e-06"]
    assert rows["teacher-sft@0"]["hit"] and not rows["report"]["hit"]
    shown = rlt_inside(*arguments).stdout
    assert "miss" not in shown.replace("misses", "") and "0 misses" in shown


def test_one_stage_alone_is_a_target(rlt: Rlt, smoke_store: Path) -> None:
    done = rlt("run", "teacher-grpo", "--profile", "smoke", "--store", str(smoke_store), "--json")
    answer = json.loads(done.stdout)
    assert answer["status"] == 0
    assert all(node["committed"] for node in answer["nodes"])
    assert answer["nodes"][-1]["name"] == "teacher-grpo@0"


def test_tables_answer(rlt_inside: Rlt, smoke_store: Path) -> None:
    query = "select rank, avg(reward) as reward from scores group by rank order by rank"
    done = rlt_inside("sql", query, "--store", str(smoke_store), "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    ranked = [row["reward"] for row in rows if row["rank"] is not None]
    assert len(ranked) == 4 and ranked[0] == max(ranked)
    joined = rlt_inside(
        "sql",
        "select count(*) as n from scores s join artifacts a using (run) where a.stage = "
        "'trace-scoring' and len(s.student_solution_logprobs) = s.solution_tokens",
        "--store", str(smoke_store), "--format", "json",
    )  # fmt: skip
    assert json.loads(joined.stdout)[0]["n"] > 0


def test_report_and_status(rlt_inside: Rlt, smoke_store: Path) -> None:
    text = rlt_inside("report", "--store", str(smoke_store)).stdout
    assert "positive control" in text
    status = rlt_inside("status", "--store", str(smoke_store))
    assert "smoke" in status.stdout and "with its report" in status.stdout


def test_an_altered_input_is_one_clear_error(rlt: Rlt, rlt_inside: Rlt, store: Path) -> None:
    opened = Store(str(store))
    [weights] = opened.local(opened.find("smoke/base-model")).rglob("model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    verified = rlt_inside("artifacts", "verify", "--store", str(store))
    assert verified.returncode != 0
    assert "model.safetensors" in verified.stdout + verified.stderr
    done = rlt(
        "run", "teacher-sft", "--profile", "smoke", "--store", str(store),
        "--set", "teacher_sft.learning_rate=0.5",
    )  # fmt: skip
    assert done.returncode == 2
    assert "model.safetensors: altered" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run --profile tinny", "did you mean 'tiny'"),
        ("run teacher-grop", "did you mean 'teacher-grpo'"),
        ("plan --set teacher_grpo.learning_rat=1", "learning_rate"),
        ("plan --set data.source=missing.jsonl", "missing.jsonl"),
        ("run --store file/store", "cannot be written"),
        ("artifacts show abc --store .", "no artifact"),
        ("report --store .", "no report"),
        (
            "run table-2 --set trace_refinement.name=gpt --set trace_refinement.model=m",
            "RLT_REFINE_BASE_URL is not set",
        ),
        ("artifacts verify", "no store at"),
        ("artifacts gc", "no store at"),
        ("artifacts pull --all --from nothing", "no store at"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(
    command: str, message: str, rlt_inside: Rlt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    place = [] if "--store" in command else ["--store", "store"]
    done = rlt_inside(*command.split(), *place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "store").exists()
