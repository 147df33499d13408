"""A plan is resolved once and travels; a stage alone follows the inputs that it is given."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flows.planning import Plan, plan_stage
from rlt_core.config import ScratchModel
from rlt_core.errors import UserError
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.overrides import load_config
from rlt_core.prompts.format import load_format
from rlt_core.store import Manifest, Ref, Store
from tasks.stage import NodeSpec
from tests.sample_store import commit, sample_run, scored_training_traces
from tests.tasks.nodes import committed, run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Manifest]]:
    store = Store(str(tmp_path_factory.mktemp("store")))
    made = sample_run(store, seeds=(0,))
    for manifest in scored_training_traces(store, made, variant="rlt"):
        made[manifest.label] = manifest
    theirs = commit(store, "trace-import[theirs]", {}, config={"digest": "0" * 64})
    made[theirs.label] = theirs
    return store, made


@pytest.mark.parametrize(
    ("change", "traces", "kl", "reason"),
    [
        ("reward.kl=k3", "trace-generation[rlt]", "k3", ""),
        ("reward.kl=k3", "trace-import[theirs]", "full", "imported"),
        ("reward.kl=k3", "trace-generation[sft-held-out]@0", "full", "written by another model"),
        ("trace_scoring.off_policy_kl=k1", "trace-import[theirs]", "k1", "imported"),
    ],
)
def test_the_kl_estimator_is_that_of_the_traces_given(
    made: tuple[Store, dict[str, Manifest]], change: str, traces: str, kl: str, reason: str
) -> None:
    store, artifacts = made

    def scoring(variant: str, **inputs: str) -> NodeSpec:
        return plan_stage("trace-scoring", load_config("tiny", [change]), variant, 0, inputs, store)

    spec = scoring("rlt", traces=artifacts[traces].ref.key)
    assert (spec.config["reward"]["kl"], spec.config.get("off_policy", "")) == (kl, reason)
    own = scoring("rlt")
    assert own.config.get("off_policy", "") == "" and "off_policy_kl" not in str(own.config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": {"model": "nowhere"}}, "no artifact 'nowhere'"),
        ({"inputs": {"modle": "tiny/base-model"}}, "has no input 'modle'"),
        ({"inputs": {"questions": "tiny/base-model"}}, "kind model; dataset is needed"),
        ({"variant": "rtl"}, "variant 'rtl'"),
        ({"seed": 7}, "seed 7"),
        ({"changes": ["resources.device=cuda", "resources.gpu_gib=0.001"]}, "layout cannot run"),
        ({"empty": True}, "run rlt/full-pipeline or rlt/"),
    ],
)
def test_a_mistake_in_a_stages_form_names_the_fix(
    made: tuple[Store, dict[str, Manifest]],
    tmp_path: Path,
    arguments: dict[str, Any],
    message: str,
) -> None:
    store = Store(str(tmp_path)) if arguments.get("empty") else made[0]
    config = load_config("tiny", ["student_sft.steps=9", *arguments.get("changes", [])])
    variant, seed = arguments.get("variant", "dataset"), arguments.get("seed", 0)
    with pytest.raises(UserError, match=re.escape(message)):
        plan_stage("student-sft", config, variant, seed, arguments.get("inputs", {}), store)


@pytest.mark.parametrize("source", ["artifact:tiny/teacher-grpo@0", "folder:tiny/teacher-grpo@0",
                                    "artifact:abc1230000000000"])  # fmt: skip
def test_a_model_of_the_store_is_a_base_model(tmp_path: Path, source: str) -> None:
    store, ref = Store(str(tmp_path / "store")), Ref(kind="model", key="abc1230000000000")
    tokenizer = tiny_tokenizer(load_format("tiny"))
    model = new_model(ScratchModel(layers=1, width=16, heads=2, max_positions=512), tokenizer)
    committed(store, ref, lambda out: save_model(model, tokenizer, out / "model"))
    store.set_ref("tiny/teacher-grpo@0", ref)
    plan = Plan.of("all", "smoke", [f"base_model={source}"], store=str(store))
    (spec,) = [one for one in plan.specs() if one.label == "base-model"]
    assert spec.config["imported"] == f"artifact:{ref.key}"
    assert plan.estimates[spec.key].parameters == model.num_parameters()
    assert run(spec).metrics["parameters"] == model.num_parameters()
    with pytest.raises(UserError, match="no artifact 'tiny/teacher-grpo'"):
        Plan.of("all", "smoke", ["base_model=artifact:tiny/teacher-grpo"], store=str(store))


ROWS = [{"question": f"{n}+1?", "solution": str(n + 1)} for n in range(20)]


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        ([{"q": "1+1?", "solution": "2"}], "data.source={}", r"row 1: no field 'question'"),
        (ROWS, "data.source={}", "20 questions are left .* need at least"),
        (
            [{"question": "1", "answer": "2"}] * 3,
            "data.test_source={}",
            "row 1: no field 'solution'",
        ),
        ([{"question": "1", "solution": "2"}], "imports.traces.mine={}", "row 1: .* trace"),
        ([{"question_id": "1"}], "imports.scores.mine={}", "row 1: no field 'reward'"),
        ([{"question": "1"}], "imports.benchmarks.mine={}", "row 1: no field 'answer'"),
    ],
)
def test_files_are_read_before_anything_runs(
    tmp_path: Path, rows: list[Any], change: str, message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [change.format(file)]
    if change.startswith("imports.benchmarks"):
        changes.append('evaluation.tasks=["test","mine"]')
    with pytest.raises(UserError, match=message):
        Plan.of("full-pipeline", "smoke", changes, store=str(tmp_path)).require_computable()


@pytest.mark.parametrize(
    ("target", "change", "message"),
    [
        ("full-pipeline", "data.n_test=0", r"evaluation\[base\]: data\.n_test is 0"),
        ("full-pipeline", "resources.stages.evaluation:bse.threads=1", "did you mean 'base'"),
        ("full-pipeline", "resources.stages.student-sft:rank-9*.threads=1", "no student-sft has"),
        ("compare-traces", "data.source={}", "the data has no traces"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused_before_anything_runs(
    tmp_path: Path, target: str, change: str, message: str
) -> None:
    rows = [{"question": f"{n}+1?", "solution": str(n + 1)} for n in range(40)]
    (file := tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        Plan.of(target, "smoke", [change.format(file)], store=str(tmp_path)).require_computable()


def test_data_alone_needs_no_test_questions(tmp_path: Path) -> None:
    changes = ["data.n_test=0", "resources.stages.evaluation:b*.threads=1"]
    Plan.of("dataset-prep", "smoke", changes, store=str(tmp_path)).require_computable()


def test_a_model_folder_is_tried_before_anything_runs(tmp_path: Path) -> None:
    tokenizer, folder = tiny_tokenizer(load_format("tiny")), tmp_path / "model"
    save_model(new_model(ScratchModel(layers=1, width=16, heads=2), tokenizer), tokenizer, folder)
    change = [f"base_model=folder:{folder}"]
    Plan.of("full-pipeline", "smoke", change, store=str(tmp_path)).require_computable()
    (folder / "chat_template.jinja").write_text("{{ nothing.at.all }}")
    with pytest.raises(UserError, match=f"{folder}.*chat template"):
        Plan.of("full-pipeline", "smoke", change, store=str(tmp_path)).require_computable()
