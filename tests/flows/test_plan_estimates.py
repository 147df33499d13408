"""`rlt plan` says what nodes take; what cannot fit is refused by every command before it runs."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from flows.deployments import full_pipeline
from flows.planning import Plan
from rlt_core.errors import UserError
from rlt_core.estimate import estimates
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.store import Store

MISFIT = ("--set", "resources.stages.teacher-sft.sharding=none")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def test_plan_shows_what_nodes_take(rlt_inside, store):
    shown = rlt_inside("plan", "--profile", "paper-7b", "--store", store)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    (teacher,) = [line for line in lines if line.startswith("teacher-grpo (1) ")]
    assert "366 GB" in teacher and "72.7" in teacher
    assert any(line.startswith("student-sft (2)") for line in lines)
    assert any(line.startswith("all ") for line in lines)
    assert "H100 SXM: 40% of 989" in shown.stdout
    assert "…" not in shown.stdout
    assert any(line.startswith("the store needs 458 GB of disk") for line in lines)


def test_estimates_of_a_cpu_are_shown_when_asked_for(rlt_inside, store):
    plain = rlt_inside("plan", "--store", store)
    assert "tokens" not in plain.stdout and plain.returncode == 0
    asked = rlt_inside("plan", "--store", store, "--estimates")
    lines = asked.stdout.splitlines()
    (teacher,) = [line for line in lines if line.startswith("teacher-sft@0 ")]
    assert teacher.split()[1:5] == ["0.7", "-", "720", "k"]
    assert "On a CPU no hours are estimated" in asked.stdout


def test_plan_shows_what_an_llm_is_asked_for_and_costs(rlt_inside, store, monkeypatch):
    llm = ("endpoint_teacher", "trace_refinement")
    sets = [f"{part}.{field}={part}" for part in llm for field in ("name", "model")]
    sets += ["endpoint_teacher.n=4", "endpoint_teacher.max_tokens=1000", "data.n_train=50"]
    command = ["plan", "--profile", "smoke", "--store", store]
    command += [word for change in sets for word in ("--set", change)]
    plain = rlt_inside(*command)
    assert plain.stdout.count("; no prices are set") == 2, plain.stdout + plain.stderr
    monkeypatch.setenv("RLT_REFINE_PROMPT_PRICE", "1")
    monkeypatch.setenv("RLT_REFINE_COMPLETION_PRICE", "1000")
    (line,) = [
        each
        for each in rlt_inside(*command).stdout.splitlines()
        if each.startswith("endpoint-generation[endpoint_teacher]@0: ")
    ]
    assert "200 requests" in line and "10 k of answers (10.0" in line, line
    assert "at most 200 k of answers (200" in line, line
    rows = json.loads(rlt_inside(*command, "--json").stdout)
    asked = {row["stage"]: row["estimate"]["requests"] for row in rows}
    assert asked["endpoint-generation"]["count"] == 200
    assert asked["endpoint-generation"]["limit"] == 1000
    assert asked["trace-refinement"]["count"] > 0 and asked["trace-scoring"] is None


def test_json_carries_estimates(rlt_inside, store):
    shown = rlt_inside("plan", "--profile", "paper-7b", "--store", store, "--json")
    nodes = {node["name"]: node for node in json.loads(shown.stdout)}
    teacher = nodes["teacher-grpo@0"]
    assert teacher["hit"] is False
    estimate = teacher["estimate"]
    assert estimate["parameters"] == 7_615_616_512
    assert sum(estimate["parts"].values()) == estimate["peak_bytes"] <= estimate["limit_bytes"]
    assert estimate["gpus"] == 8
    assert estimate["gpu_hours"] == pytest.approx(8 * estimate["wall_hours"])


def test_a_plan_needs_no_name_of_a_server_and_a_run_does(rlt_inside, store):
    for profile in ("paper-32b", "paper-32b-1k"):
        shown = rlt_inside("plan", "--profile", profile, "--store", store)
        assert shown.returncode == 0, shown.stderr
        assert "`vllm serve` at http://localhost:8000" in shown.stdout
    refused = rlt_inside("run", "--profile", "paper-32b", "--store", store)
    assert refused.returncode == 2
    assert "--set resources.stages.student-grpo.vllm_server=http://HOST:8000" in refused.stderr


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_the_machines_have_no_room_for_is_refused(rlt_inside, store, command):
    small = ("--set", "resources.disk_gb=300")
    refused = rlt_inside(command, "teacher-grpo", "--profile", "paper-7b", "--store", store, *small)
    assert refused.returncode == 2
    assert "and 300 GB are free; checkpoint less often: --set" in refused.stderr
    assert not Store(str(store)).manifests()


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_cannot_fit_is_refused(rlt_inside, store, command):
    refused = rlt_inside(command, "--profile", "paper-7b", "--store", store, *MISFIT)
    assert refused.returncode == 2
    assert "teacher-sft@0 needs 170.2 GiB of a GPU" in refused.stderr
    assert "--set resources.stages.teacher-sft.sharding=fsdp" in refused.stderr
    assert ("teacher-sft (1)" in refused.stdout) == (command == "plan")  # the table comes first
    assert not Store(str(store)).manifests()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_run_that_samples_with_a_missing_vllm_is_refused_before_it_trains(rlt_inside, store):
    vllm = ("--profile", "smoke", "--store", store, "--set", "resources.engine=vllm")
    refused = rlt_inside("run", *vllm)
    assert refused.returncode == 2 and not Store(store).manifests()
    assert "smoke generates with vLLM, which is not installed" in refused.stderr
    assert rlt_inside("plan", *vllm).returncode == 0  # another machine may compute it


def test_what_is_in_the_store_already_is_not_refused(smoke_store):
    """A layout matters to what is still to be computed."""
    tight = ("resources.device=cuda", "resources.gpu_gib=0.0001")
    finished = Plan.of("full-pipeline", "smoke", tight, store=str(smoke_store))
    assert not finished.missing
    finished.require_computable()
    with pytest.raises(UserError, match="cannot run"):
        Plan.of("table-1", "smoke", tight, store=str(smoke_store)).require_computable()


def test_estimates_of_a_finished_run(smoke_store):
    """Models have the bytes that were estimated; what is there is counted, not assumed."""
    config, store = load_config("smoke"), Store(str(smoke_store))
    nodes = upstream(targets("full-pipeline", config))
    before, after = estimates(config, nodes), estimates(config, nodes, store)
    for node in nodes:
        manifest = store.manifest(node.ref.kind, node.key)
        assert manifest and after[node.key].artifact_bytes == manifest.bytes
        if node.stage.model:
            weights = sum(one.bytes for one in manifest.files if one.path.endswith(".safetensors"))
            assert before[node.key].artifact_bytes == pytest.approx(weights, rel=0.05)
            assert before[node.key].parameters == manifest.metrics.get(
                "parameters", before[node.key].parameters
            )
        if node.stage.name == "trace-generation":
            asked = before[node.key].tokens, after[node.key].tokens
            assert asked[0] == pytest.approx(asked[1], rel=1.0)


def test_an_experiment_on_a_server_refuses_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.deployments.use_block", lambda: None)
    state = full_pipeline.fn("paper-7b", [MISFIT[1]], str(tmp_path / "store"))
    assert state.is_failed()
    assert "teacher-sft@0 needs" in state.message
    assert not Store(str(tmp_path / "store")).manifests()
