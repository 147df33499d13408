"""A key is a function of stage, version, config and inputs, and of nothing else."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from infra.sample_manifest import manifest_of_node
from rlt_core.errors import UserError
from rlt_core.experiments import targets
from rlt_core.graph import Node, plan, upstream
from rlt_core.overrides import load_config
from rlt_core.stages import STAGES
from rlt_core.store import Store


def nodes(*sets: str, profile: str = "smoke") -> dict[str, Node]:
    found = upstream(targets("full-pipeline", load_config(profile, sets)))
    return {node.name: node for node in found}


def keys(*sets: str) -> dict[str, str]:
    return {name: node.key for name, node in nodes(*sets).items()}


def changed(*sets: str) -> set[str]:
    before, after = keys(), keys(*sets)
    return {name for name in before if before[name] != after.get(name)}


def commit(store: Store, node: Node) -> None:
    store.commit(manifest_of_node(node, store.begin(node.ref).id))


@pytest.mark.parametrize(
    ("sets", "touched", "untouched"),
    [
        (("resources.threads=7", "resources.micro_batch_size=1", "resources.cores=9"), (), ...),
        (("trace_refinement.name=gpt", "trace_refinement.model=m"), ("report",), ...),
        (("endpoint_teacher.name=gpt", "endpoint_teacher.model=m"), ("report",), ...),
        (
            ("teacher_grpo.learning_rate=2e-6",),
            ("teacher-grpo@0", "report", "evaluation[rlt]@0"),
            ("base-model", "teacher-sft@0", "evaluation[rank-1]@0", "student-sft[dataset]@0"),
        ),
    ],
)
def test_a_change_reaches_what_is_downstream_and_nothing_else(
    sets: tuple[str, ...], touched: tuple[str, ...], untouched: Any
) -> None:
    found = changed(*sets)
    assert found >= set(touched)
    assert not found - set(touched) if untouched is ... else not found & set(untouched)


def test_a_stage_version_is_part_of_the_key() -> None:
    node = nodes()["teacher-sft@0"]
    raised = dataclasses.replace(node, stage=dataclasses.replace(node.stage, version=9))
    assert raised.key != node.key


def test_seeds_expand_what_depends_on_them_and_share_the_rest() -> None:
    one, three = keys("seeds=[0]"), keys("seeds=[0,1,2]")
    assert one["base-model"] == three["base-model"]
    assert one["evaluation[base]"] == three["evaluation[base]"]
    assert one["teacher-grpo@0"] == three["teacher-grpo@0"]
    assert len({three[f"teacher-sft@{seed}"] for seed in range(3)}) == 3
    assert one["rank-statistics[reward]"] != three["rank-statistics[reward]"]


def test_what_the_config_names_becomes_nodes(tmp_path: Path) -> None:
    stages = {node.stage.name for node in nodes().values()}
    on_demand = {"trace-import", "trace-refinement", "endpoint-generation", "score-import",
                 "trace-selection"}  # fmt: skip
    assert stages == set(STAGES) - on_demand
    traces = tmp_path / "traces.jsonl"
    traces.write_text("{}")
    more = nodes(
        "imports.models.other=hub:a/b", f"imports.traces.r1={traces}",
        f"imports.scores.theirs={traces}", "trace_refinement.name=gpt", "trace_refinement.model=m",
        "reward_student=hub:c/d", "student=hub:c/d",
        "endpoint_teacher.name=llm", "endpoint_teacher.model=m",
    ).keys() - nodes().keys()  # fmt: skip
    assert more == {
        "base-model[other]", "evaluation[other]", "trace-import[r1]", "student-sft[r1]@0",
        "evaluation[r1]@0", "score-import[theirs]", "trace-refinement[gpt]@0",
        "student-sft[gpt]@0", "evaluation[gpt]@0", "base-model[student]",
        "endpoint-generation[llm]@0", "student-sft[llm]@0", "evaluation[llm]@0",
    }, "equal models are one node"  # fmt: skip


def test_no_warm_up_starts_rl_from_the_base_model() -> None:
    tree = nodes("teacher_sft.traces=none")
    assert tree["teacher-grpo@0"].inputs["model"].key == tree["base-model"].key
    assert not any(name.startswith("teacher-sft") for name in tree)
    assert "student-sft[dataset]@0" not in tree


def test_a_local_file_is_known_by_its_content(tmp_path: Path) -> None:
    row = json.dumps({"question": "1+1?", "solution": "2"})
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(row)
    two.write_text(row)
    assert keys(f"data.source={one}") == keys(f"data.source={two}")
    two.write_text(row + "\n")
    assert keys(f"data.source={one}") != keys(f"data.source={two}")


def test_the_plan_says_what_changed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for node in nodes().values():
        commit(store, node)
    config = load_config("smoke", ["teacher_grpo.learning_rate=2e-6"])
    planned = {
        item.node.name: item for item in plan(targets("full-pipeline", config), store, "smoke")
    }
    assert planned["teacher-sft@0"].hit
    grpo = planned["teacher-grpo@0"]
    assert not grpo.hit
    assert grpo.changes == ("grpo.learning_rate: 0.0001 → 2e-06",)
    (change,) = planned["trace-generation[rlt]@0"].changes
    assert change.startswith("input teacher (teacher-grpo@0): ")
    assert planned["student-grpo[rlt]@0"].reasons == planned["student-grpo[rlt]@0"].changes
    same = targets("full-pipeline", load_config("smoke"))
    assert all(item.hit for item in plan(same, store, "smoke"))


def test_nodes_that_read_the_datas_system_prompt_depend_on_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    own = (f"data.source={data}", "imports.models.x.format=r1", "imports.models.x=hub:a/b")
    plain, of_data = nodes(*own), nodes(*own, "data.fields.system=system")
    assert {"dataset-prep", "evaluation[x]", "teacher-sft@0"} <= of_data.keys()
    for name, node in of_data.items():
        format = getattr(node.config, "format", None)
        if format is None or node.stage.name == "dataset-prep":
            assert "system" not in node.inputs
        elif name == "evaluation[x]":
            assert "system" not in node.inputs and format.name == "r1"
            assert node.config.format_named
        else:
            assert node.inputs["system"] is of_data["dataset-prep"]
            assert format.student_system is None
        if format and name != "evaluation[x]":
            assert node.key != plain[name].key


def test_the_teachers_system_prompt_is_a_text_or_a_file_by_content(tmp_path: Path) -> None:
    file = tmp_path / "teacher.txt"
    file.write_text("Explain it well.\n")
    assert keys(f"teacher_system={file}") == keys("teacher_system=Explain it well.")
    changes = changed("teacher_system=Explain it well.")
    assert {"teacher-sft@0", "teacher-grpo@0", "trace-generation[rlt]@0"} <= changes
    with pytest.raises(UserError, match=r"teacher_system='nowhere\.txt': no such file"):
        nodes("teacher_system=nowhere.txt")
    file.write_bytes("Erkläre.".encode("latin-1"))
    with pytest.raises(UserError, match=r"teacher_system=.*teacher\.txt' cannot be read as UTF-8"):
        nodes(f"teacher_system={file}")
