"""Main memory and disk: what a training leaves there, and what is refused for lack of it."""

import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from medium_models import medium, saved, shape_of, train

from rlt_core.config import GRPOConfig, LoRA, ReferenceSync, SFTConfig, StageResources
from rlt_core.errors import UserError
from rlt_core.estimate import Machine, disk_needed, estimates, require_fit
from rlt_core.estimate.memory import training_files
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.store import Store, Workspace

GB = 1e9


def planned(profile: str, *changes: str, target: str = "full-pipeline") -> Any:
    config = load_config(profile, changes)
    return config, upstream(targets(target, config))


def room(profile: str, *changes: str, here: Machine | None = None, store: Any = None) -> None:
    require_fit(*planned(profile, *changes), store, here)


def refusal(profile: str, *changes: str, **options: Any) -> list[str]:
    with pytest.raises(UserError, match="cannot run") as refused:
        room(profile, *changes, **options)
    return str(refused.value).splitlines()[1:]


# ---------------------------------------------------------------- what a training leaves
@pytest.mark.parametrize("lora", [None, LoRA(rank=16)])
def test_checkpoints_have_the_bytes_and_the_number_that_are_estimated(tmp_path, monkeypatch, lora):
    config = medium("llama")
    sft = SFTConfig(steps=4, batch_size=1, max_tokens=32, dtype="bfloat16", lora=lora)
    sizes: list[int] = []
    commit = Workspace.commit

    def measured(work: Workspace, group: str, name: str, **metrics: Any) -> None:
        commit(work, group, name, **metrics)
        folder = tmp_path / "store" / "work" / "key"
        found = [each.stat().st_size for each in folder.rglob("*") if each.is_file()]
        sizes.append(sum(found))

    monkeypatch.setattr(Workspace, "commit", measured)
    resources = {"device": "cpu", "checkpoint_every_steps": 1}
    train(saved(config, tmp_path / "start"), tmp_path, 32, sft, **resources)
    left = training_files(shape_of(config), sft, 4, StageResources(**resources))
    text = (tmp_path / "start/tokenizer.json").stat().st_size
    assert left.count == 3 and len(sizes) == 4
    assert sizes[0] == pytest.approx(left.checkpoint + text, rel=0.1)
    checkpoints = left.count * left.checkpoint
    assert max(sizes) == pytest.approx(checkpoints + 3 * text, rel=0.1) and checkpoints <= left.disk


def test_a_synced_reference_is_in_every_checkpoint():
    shape = shape_of(medium("qwen2"))
    grpo = GRPOConfig(steps=10, dtype="bfloat16")
    plain = training_files(shape, grpo, 10, StageResources(checkpoint_every_steps=10))
    synced = grpo.model_copy(update={"reference_sync": ReferenceSync()})
    moved = training_files(shape, synced, 10, StageResources(checkpoint_every_steps=10))
    assert plain.checkpoint == 12 * shape.parameters
    assert moved.checkpoint == 16 * shape.parameters
    assert moved.disk == moved.checkpoint + moved.model  # one checkpoint, then the model beside it
    assert (
        training_files(shape, synced, 9, StageResources(checkpoint_every_steps=10)).disk
        == moved.model
    )


def test_the_paper_s_teacher_takes_three_checkpoints_of_122_gb():
    config, nodes = planned("paper-7b")
    (teacher,) = [node for node in nodes if node.stage.name == "teacher-grpo"]
    found = estimates(config, nodes)
    estimate = found[teacher.key]
    assert estimate.checkpoint_bytes == pytest.approx(122 * GB, rel=0.01)
    assert estimate.disk_bytes == 3 * estimate.checkpoint_bytes
    needed, widest = disk_needed(nodes, found)
    assert widest is teacher
    kept = sum(each.artifact_bytes for each in found.values())
    assert needed == kept + estimate.disk_bytes - estimate.artifact_bytes


# ---------------------------------------------------------------- what is refused
def test_a_disk_that_is_too_small_is_refused_with_what_reduces_it():
    (line,) = refusal("paper-7b", small := "resources.disk_gb=400")
    assert (
        "20 nodes (teacher-grpo@0 366 GB" in line
        and "need 458 GB" in line
        and "400 GB are free" in line
    )
    assert "--store name a larger disk" in line
    (hint,) = re.findall(r"--set (\S+\d)", line)
    room("paper-7b", small, hint)


def test_main_memory_that_is_too_small_is_refused_with_what_reduces_it():
    (line,) = refusal("paper-7b", "resources.stages.teacher-sft.host_gib=40")
    assert "teacher-sft@0 needs 72.7 GiB" in line
    assert "--set" not in line and "take a machine with more" in line
    lines = refusal("tiny", "resources.host_gib=0.001")
    assert len(lines) >= 3
    assert all("take a machine with more" in line for line in lines)


def test_a_store_elsewhere_needs_room_for_one_checkpoint_on_its_way(tmp_path):
    store = Store(str(tmp_path / "store"))
    store.files.is_local = False
    (line,) = refusal("paper-7b", "resources.disk_gb=125", store=store)
    assert "teacher-grpo@0, its inputs and what it makes need 152 GB of disk" in line
    room("paper-7b", "resources.disk_gb=160", store=store)


# ---------------------------------------------------------------- this machine
def test_a_small_cpu_is_not_refused_for_sequences_that_may_be_short():
    room("tiny", here=Machine(memory=200 << 20, disk=10**9))
    lines = refusal("tiny", here=Machine(memory=1 << 20, disk=10**9))
    assert any("teacher-sft@0 needs" in line for line in lines)


def test_the_disk_is_the_store_s_and_what_is_there_of_unfinished_nodes_counts(tmp_path):
    empty = Machine.here(tmp_path / "not/yet/there", [tmp_path / "work/key"])
    free = shutil.disk_usage(tmp_path).free
    assert empty.disk == pytest.approx(free, rel=0.05)
    assert empty.memory and empty.memory > 1 << 28
    folder = tmp_path / "work/key/checkpoints"
    folder.mkdir(parents=True)
    with (folder / "weights").open("wb") as file:
        file.truncate(10**12)  # takes no room
    resumed = Machine.here(tmp_path, [tmp_path / "work/key"])
    assert resumed.disk - empty.disk == pytest.approx(10**12, rel=0.01)


def test_files_that_disappear_meanwhile_are_left_out(tmp_path):
    folder, ended = tmp_path / "checkpoints", threading.Event()

    def rotate():
        while not ended.is_set():
            folder.mkdir()
            (folder / "weights").write_bytes(b"1")
            shutil.rmtree(folder)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(rotate)
        try:
            assert all(Machine.here(tmp_path, [tmp_path]).disk for _ in range(500))
        finally:
            ended.set()


def test_resources_come_before_this_machine():
    large, small = Machine(10**13, 10**13), Machine(10**8, 10**8)
    room("paper-7b", here=large)
    assert refusal("paper-7b", "resources.host_gib=1", "resources.disk_gb=1", here=large)
    assert refusal("paper-7b", here=small)
    room("paper-7b", "resources.host_gib=1000", "resources.disk_gb=1000", here=small)
