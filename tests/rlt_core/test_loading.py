"""Weights come from their file as they were saved, and are shared by all that map it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlt_core.config import LoRA, ScratchModel, SFTConfig, StageResources
from rlt_core.generation import open_engine
from rlt_core.generation.hf import TransformersEngine
from rlt_core.models import (
    compute_dtype,
    load_model,
    new_model,
    on_device,
    save_model,
    saved_dtype,
    tiny_tokenizer,
)
from rlt_core.prompts.format import load_format
from rlt_core.training.data_order import MicroBatches
from rlt_core.training.policy import load_policy, trainer_arguments

FORMAT = load_format("tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ScratchModel(layers=1, width=256, heads=2)
    tokenizer = tiny_tokenizer(FORMAT)
    save_model(new_model(config, tokenizer).to(torch.bfloat16), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def anonymous_bytes() -> int:
    """Main memory of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))


def test_a_model_in_its_own_format_takes_no_memory_beside_its_file(tmp_path: Path) -> None:
    config = ScratchModel(layers=2, width=2048, heads=2)
    tokenizer = tiny_tokenizer(FORMAT)
    save_model(new_model(config, tokenizer), tokenizer, tmp_path / "model")
    size = (tmp_path / "model/model.safetensors").stat().st_size
    assert size > 200 << 20
    load_model(tmp_path / "model")  # what the first use of a library allocates
    before = anonymous_bytes()
    model = load_model(tmp_path / "model")
    assert all(torch.isfinite(each).all() for each in model.parameters())  # every page is read
    assert anonymous_bytes() - before < size / 4


@pytest.mark.parametrize("said", ["float32", "bfloat16", "float16"])
def test_the_saved_format_is_that_of_the_weights_whatever_the_config_says(
    folder: Path, said: str
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": said}))
    assert saved_dtype(folder) == "bfloat16"
    assert load_model(folder, "auto").dtype == torch.bfloat16


def test_one_weight_of_more_digits_keeps_them(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "norm" in name)
    tensors[name] = tensors[name].float() + 1e-5
    save_file(tensors, file, {"format": "pt"})
    assert saved_dtype(folder) == "float32"
    assert torch.equal(load_model(folder, "auto").state_dict()[name], tensors[name])


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_that_cannot_multiply_bfloat16_computes_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("rlt_core.models.bfloat16_on_cpu", lambda: multiplies)
    here, config = StageResources(device="cpu"), SFTConfig(epochs=1, dtype="bfloat16", lora=LoRA())
    engine = open_engine(folder, "bfloat16", here)
    assert isinstance(engine, TransformersEngine) and engine.model.dtype == dtype
    assert load_policy(folder, config, here).dtype == dtype
    arguments = trainer_arguments(config, 1, MicroBatches(1, 1), 0, here)
    assert arguments["bf16"] is multiplies
    assert compute_dtype("bfloat16", "cuda") == "bfloat16"


def test_a_model_that_waits_outside_is_back_in_the_memory_that_it_came_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(folder, "bfloat16")
    places = [each.data_ptr() for each in model.parameters()]

    def to_another_memory(_: str) -> None:
        for each in model.parameters():
            each.data = each.data.clone()

    monkeypatch.setattr(model, "to", to_another_memory)
    with on_device(model, StageResources(device="cpu", offload=True)):
        assert [each.data_ptr() for each in model.parameters()] != places
    assert [each.data_ptr() for each in model.parameters()] == places
