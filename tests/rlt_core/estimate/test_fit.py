"""What cannot fit is refused, and the hint reduces the number that the refusal names."""

import math
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import Frozen, HubModel
from rlt_core.errors import UserError
from rlt_core.estimate import (
    Estimator,
    NodeEstimate,
    estimates,
    require_fit,
    require_servers,
)
from rlt_core.estimate.memory import GIB
from rlt_core.experiments import ALL, targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config
from rlt_core.profiles import PROFILES
from rlt_core.stages import STAGES, Stage
from rlt_core.stages.cost import Cost, Questions, TrainingWork

OWN_DATA = ("laptop", "single-gpu", "teach")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text('{"question": "1+1?", "solution": "2"}\n' * 800)
    return path


def graph(profile: str, questions: Path, *changes: str, target: str = ALL) -> Any:
    own = [f"data.source={questions}"] if profile in OWN_DATA else []
    if profile in ("laptop", "smol-science", "teach"):  # their package may not be installed
        own.append(f"base_model=hub:HuggingFaceTB/SmolLM2-360M-Instruct@{'0' * 40}")
    config = load_config(profile, [*own, *changes])
    return config, upstream(targets(target, config))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_experiment_of_every_profile_fits(profile, questions):
    config, nodes = graph(profile, questions)
    found = require_fit(config, nodes)
    assert set(found) == {node.key for node in nodes}
    for node in nodes:
        if node.stage.model:
            assert found[node.key].parameters
            assert found[node.key].artifact_bytes >= found[node.key].parameters


def test_a_stage_of_one_s_own_is_estimated_by_the_cost_that_it_declares(questions):
    """Stages declare costs; the estimates know none of them by its config."""
    default = Stage.__dataclass_fields__["cost"].default
    computing = {stage.name: stage.cost for stage in STAGES.values() if stage.pool == "gpu"}
    assert computing and default not in computing.values()
    assert pickle.loads(pickle.dumps(STAGES["teacher-sft"])) is STAGES["teacher-sft"]
    config, nodes = graph("paper-7b", questions)
    (ours,) = (node for node in nodes if node.stage.name == "teacher-sft")
    recipe = ours.config.sft
    stage = replace(
        ours.stage, name="mine", config=Frozen,
        cost=lambda config, inputs: Cost(TrainingWork(recipe, 2 * inputs.questions.train, 1000)),
    )  # fmt: skip
    mine = Node(stage, Frozen(), ours.inputs)
    with_mine = Estimator(config, [*nodes, mine], None)
    found, known = (with_mine.of(node).estimate() for node in (mine, ours))
    assert found.peak_bytes == known.peak_bytes and found.artifact_bytes == known.artifact_bytes
    data = with_mine.of(ours).questions
    rows = math.ceil(recipe.epochs * 2 * data.train / recipe.batch_size) * recipe.batch_size
    assert found.tokens == 1000 * rows and found.gpu_hours


def data_of(profile: str, questions: Path, *changes: str) -> Questions:
    config, nodes = graph(profile, questions, *changes, target="full-pipeline")
    (prepared,) = (node for node in nodes if node.label == "dataset-prep")
    return Estimator(config, nodes).of(prepared).made_questions


@pytest.mark.parametrize(("file", "train"), [(False, 590), (True, 690)])
def test_questions_of_a_test_file_are_not_taken_from_the_others(file, train, questions):
    own = [f"data.test_source={questions}"] if file else []
    split = ("data.n_validation=110", "data.n_test=100", "data.n_train=null")
    assert data_of("single-gpu", questions, *split, *own).train == train


@pytest.mark.parametrize(
    ("field", "traced"),
    [("data.seed=1", False), ("data.fields.trace=trace", True), ("data.conversations=true", True)],
)
def test_a_file_s_own_traces_are_counted_however_it_holds_them(field, traced, questions):
    found = data_of("single-gpu", questions, field)
    assert found.with_trace == (found.train if traced else 0)


REFUSED = [
    ("paper-7b", ["resources.gpu_gib=48", "larger_student=null"]),
    ("paper-7b", ["resources.sharding=none", "resources.processes=1"]),
    ("paper-7b", ["resources.stages.evaluation:*large*.tensor_parallel=1"]),
    ("paper-7b", ["resources.stages.trace-scoring.tokens_per_batch=1000000"]),
    ("paper-32b", ["resources.stages.student-sft.machines=1"]),
    ("paper-32b", ["resources.stages.student-grpo.vllm_server=null"]),
    ("single-gpu", ["resources.gpu_gib=24"]),
    ("single-gpu", ["resources.gradient_checkpointing=false", "resources.micro_batch_size=16"]),
]


@pytest.mark.parametrize(("profile", "changes"), REFUSED)
def test_the_hint_reduces_the_memory_that_is_named(profile, changes, questions):
    config, nodes = graph(profile, questions, *changes)
    by_name = {node.name: node for node in nodes}
    with pytest.raises(UserError, match="cannot run") as refused:
        require_fit(config, nodes)
    lines = str(refused.value).splitlines()[1:]
    assert lines
    before, hinted = Estimator(config, nodes), {}
    for line in lines:
        node, needs = by_name[line.split()[0]], float(line.split(" needs ")[1].split()[0])
        peak = before.of(node).estimate().peak_bytes
        assert peak / GIB == pytest.approx(needs, abs=0.06)
        hint = tuple(re.findall(r"--set (\S+)", line))
        assert hint and line.count("it takes less with") == 1
        if hint not in hinted:
            hinted[hint] = Estimator(*graph(profile, questions, *changes, *hint))
        assert hinted[hint].of(node).estimate().peak_bytes < peak


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["resources.processes=1", "resources.stages.student-sft.machines=1"], "there is one"),
        (["resources.engine=transformers"], "tensor_parallel=2 is of the engine vllm"),
        (["resources.stages.student-sft.processes=7"], "cannot be shared by 14 processes"),
        (["resources.stages.evaluation.tensor_parallel=8"], "28 attention heads"),
        (["resources.stages.teacher-grpo.tensor_parallel=2"], "on the trainer's GPU; set"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(changes, said, questions):
    with pytest.raises(UserError, match=said):
        require_fit(*graph("paper-7b", questions, *changes))


def test_a_server_that_each_machine_would_look_for_on_itself_is_refused(questions):
    """By a run: a plan needs no name."""
    for profile in ("paper-32b", "paper-32b-1k"):
        config, nodes = graph(profile, questions)
        require_fit(config, nodes)
        with pytest.raises(UserError, match="another place on each of 4 machines") as refused:
            require_servers(config, nodes)
        named = str(refused.value).split("--set ")[1].replace("HOST", "sampler.example")
        require_servers(*graph(profile, questions, named))
    own = "resources.stages.student-grpo.vllm_server=http://localhost:8000"
    require_servers(*graph("paper-7b", questions, own))


def test_nothing_is_refused_for_memory_where_no_gpu_is_named(questions):
    config, nodes = graph("tiny", questions, "resources.gpu_gib=0.001")
    found = require_fit(config, nodes)
    assert all(each.gpu_hours is None and not each.on_gpu for each in found.values())
    assert any(each.peak_bytes for each in found.values())
    with pytest.raises(UserError, match="needs"):
        require_fit(*graph("tiny", questions, "resources.gpu_gib=0.001", "resources.device=cuda"))


def test_a_model_of_unknown_shape_is_planned(questions):
    config = load_config("paper-7b").model_copy(update={"base_model": HubModel(repo="nobody/x")})
    nodes = upstream(targets("full-pipeline", config))
    found = require_fit(config, nodes)
    (teacher,) = [found[node.key] for node in nodes if node.stage.name == "teacher-sft"]
    assert teacher.parameters is teacher.peak_bytes is teacher.gpu_hours is None
    assert teacher.tokens > 0 and teacher.peak_bytes is None


# ---------------------------------------------------------------- what more of something does
def of_stage(stage: str, profile: str, questions: Path, *changes: str) -> NodeEstimate:
    config, nodes = graph(profile, questions, *changes, target="full-pipeline")
    return estimates(config, nodes)[next(n.key for n in nodes if n.stage.name == stage)]


def test_what_scoring_measures_beside_the_reward_is_in_the_estimate(questions):
    plain, anchored, stepped = (
        of_stage("trace-scoring", "single-gpu", questions, *changes)
        for changes in (
            (),
            ("trace_scoring.anchoring=true",),
            ("trace_scoring.utility_questions=64", "data.n_validation=32"),
        )
    )
    assert plain.gpu_hours < anchored.gpu_hours and plain.peak_bytes == anchored.peak_bytes
    assert plain.gpu_hours < stepped.gpu_hours and plain.peak_bytes < stepped.peak_bytes


LAID_OUT = ("teacher-sft", "teacher-grpo", "student-grpo", "trace-scoring", "trace-generation")
SMALLER = {  # whose larger value never needs more memory
    "processes": (1, 2, 4, 8), "machines": (1, 2, 4), "offload": (False, True),
    "gradient_checkpointing": (False, True),
}  # fmt: skip
LARGER = {"micro_batch_size": (1, 2, 4, 16), "tokens_per_batch": (8192, 65536, 10**6)}


@given(
    stage=st.sampled_from(LAID_OUT),
    field=st.sampled_from([*SMALLER, *LARGER]),
    engine=st.sampled_from(["transformers", "vllm"]),
    sharding=st.sampled_from(["none", "fsdp"]),
    data=st.data(),
)
def test_memory_goes_one_way(stage, field, engine, sharding, data, questions):
    values = {**SMALLER, **LARGER}[field]
    places = st.integers(0, len(values) - 1)
    low, high = sorted((data.draw(places), data.draw(places)))
    peaks = []
    for value in (values[low], values[high]):
        # One process alone has no buckets in which gradients are sent.
        fixed = {"engine": engine, "sharding": sharding, "processes": 2, "device": "cuda"}
        own = {**fixed, field: max(value, 2) if field == "processes" else value}
        changes = [f"resources.stages.{stage}.{name}={each}" for name, each in own.items()]
        changes = [each.replace("True", "true").replace("False", "false") for each in changes]
        peaks.append(of_stage(stage, "paper-7b", questions, *changes).peak_bytes)
    if field in LARGER:
        peaks.reverse()
    assert peaks[0] >= peaks[1]


def test_a_larger_model_takes_more_of_everything(questions):
    small, large = (of_stage("student-sft", name, questions) for name in ("paper-7b", "paper-32b"))
    for name in ("parameters", "peak_bytes", "gpu_hours", "artifact_bytes"):
        assert getattr(small, name) < getattr(large, name)
    assert small.tokens == large.tokens


def test_hours_follow_work_and_layout(questions):
    four, eight = (
        of_stage("teacher-sft", "paper-7b", questions, f"resources.processes={n}") for n in (4, 8)
    )
    assert (four.gpus, eight.gpus) == (4, 8)
    assert four.gpu_hours == pytest.approx(eight.gpu_hours)
    assert four.wall_hours == pytest.approx(2 * eight.wall_hours)
    # 6 FLOPs a weight and token, a third more to compute activations again, and attention.
    flops = four.gpu_hours * 3600 * 0.4 * 989e12
    assert 8 * 7.0e9 * four.tokens < flops < 1.4 * 8 * 7.6e9 * four.tokens
