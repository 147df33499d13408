"""What would fail or go wrong later is refused at import, in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from rlt_core.chat_templates import BadTemplate, chats, try_template
from rlt_core.config import FolderModel
from rlt_core.errors import UserError
from rlt_core.models import import_model, load_model, load_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from tests.rlt_core.families import FAMILIES, tokenizer_of, write_family

EXPLOSIONS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' * 10 ** 7 }}",
    "{% if messages[0].role == 'system' %}{{ 'a' * 10 ** 10 }}{% endif %}",
    "{{ '%01000000000d' % 1 }}",
    "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('a' * 99999) }}",
]
BY_NAME = {family.name: family for family in FAMILIES}
CHAT = BY_NAME["qwen2.5"].template
DAY = load_format("tiny").template_date


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    return write_family(BY_NAME["qwen2.5"], folder)


def imported(folder: Path) -> Path:
    out = folder.parent / "out"
    import_model(FolderModel(path=str(folder)), out)
    return out


def edit(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def sharded(folder: Path) -> list[Path]:
    model = load_model(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("*.safetensors"))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def without_a_shard(folder: Path) -> None:
    sharded(folder)[1].unlink()


def pickled_shard(folder: Path) -> None:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(".safetensors", ".bin"))


def elsewhere_shard(folder: Path) -> None:
    sharded(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-', '"../model-'))


def without_a_weight(folder: Path) -> None:
    model = load_model(folder)
    state = {k: v for k, v in model.state_dict().items() if "layers.1.mlp.up_proj" not in k}
    model.save_pretrained(folder, state_dict=state)


def other_shape(folder: Path) -> None:
    edit(folder, "config.json", intermediate_size=40)


def linked(folder: Path) -> None:
    outside = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)


def small_embedding(folder: Path) -> None:
    model = load_model(folder)
    model.resize_token_embeddings(200)
    model.save_pretrained(folder)


def eight_bits(folder: Path) -> None:
    model = load_model(folder)
    state = model.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    model.save_pretrained(folder, state_dict=state | {name: state[name].to(torch.int8)})


def other_transform(folder: Path) -> None:
    tokenizer = tokenizer_of(BY_NAME["qwen2.5"])
    config = RecurrentGemmaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=16, lru_width=16, max_position_embeddings=64, logits_soft_cap=3.0,
    )  # fmt: skip
    RecurrentGemmaForCausalLM(config).save_pretrained(folder)


def looking_ahead(folder: Path) -> None:
    write_family(BY_NAME["gemma-3"], folder)
    edit(folder, "config.json", use_bidirectional_attention=True)


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (cut, "missing, cut or damaged"),
    (cut_header, "missing, cut or damaged"),
    (without_a_shard, r"model-00002-of-.*: missing"),
    (pickled_shard, "names no safetensors files"),
    (elsewhere_shard, "names no safetensors files"),
    (without_a_weight, r"1 weights are missing.*up_proj"),
    (other_shape, r"cannot be loaded"),
    (linked, r"symbolic link to a file outside"),
    (small_embedding, r"200 rows, but the tokenizer has"),
    (eight_bits, "is I8: only complete, unquantised"),
    (
        lambda f: edit(f, "config.json", quantization_config={"quant_method": "mxfp4"}),
        "unquantised",
    ),
    (lambda f: edit(f, "config.json", a={"b": {"quantization_config": "hqq"}}), "unquantised"),
    (lambda f: os.mkfifo(f / "x.json"), r"x\.json: not a plain file"),
    (lambda f: (f / "x.json").symlink_to("/etc/hostname"), "symbolic link to a file outside"),
    (lambda f: (f / "x.txt").symlink_to("gone"), "not a plain file"),
    (lambda f: (f / "adapter_config.json").write_text("{}"), "merge the adapters"),
    (lambda f: edit(f, "config.json", model_type="unheard-of"), "cannot be loaded"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
    (lambda f: (f / "chat_template.jinja").write_text("{% if %}"), "it is not valid"),
    (lambda f: (f / "chat_template.jinja").write_text("{{ cycler(1) }}" + CHAT), "two times"),
    (other_transform, "in a way that scoring does not know"),
    (looking_ahead, "its attention is not causal"),
]


@pytest.mark.parametrize("fault, reason", FAULTS)
def test_a_fault_is_refused_in_one_line(
    fault: Callable[[Path], None], reason: str, folder: Path
) -> None:
    fault(folder)
    with pytest.raises(UserError, match=reason) as caught:
        imported(folder)
    assert "\n" not in str(caught.value)


def test_how_its_makers_ran_a_model_is_not_taken_over(folder: Path) -> None:
    settings = {
        "_attn_implementation": "eager", "attn_implementation": "kernels-community/flash-attn",
        "output_attentions": True, "return_dict": False, "output_router_logits": True,
    }  # fmt: skip
    edit(folder, "config.json", **settings)
    edit(folder, "generation_config.json", do_sample=False, temperature=0.9, eos_token_id=[3, 1])
    out = imported(folder)
    assert not settings.keys() & json.loads((out / "config.json").read_text()).keys()
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [3, 1] and "temperature" not in generation
    model = load_model(out)
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(folder.parent / "checkpoint")
    # A folder for `rlt reward score`, or an artifact of a stranger's store, is not imported.
    evil = "evil.safetensors.index.json"
    (out / evil).write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))
    settings |= {"_attn_implementation_internal": "org/kernel", "transformers_weights": evil}
    settings |= {"auto_map": {"AutoModelForCausalLM": "evil.py--x"}, "kernel_config": {"a": "b"}}
    edit(out, "config.json", **settings)
    assert load_model(out).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "fault, reason",
    [
        (linked, "symbolic link"),
        (pickled_shard, "names no safetensors files"),
        (elsewhere_shard, "names no safetensors files"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "merge the adapters"),
        (lambda f: os.mkfifo(f / "generation_config.json"), "not a plain file"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "never loaded"),
    ],
)
def test_a_folder_that_was_not_imported_is_refused_when_it_is_loaded(
    fault: Callable[[Path], None], reason: str, folder: Path
) -> None:
    """`rlt reward score`, and models in a store that comes from somebody else."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    fault(folder)
    with pytest.raises(UserError, match=reason):
        load_model(folder)


@pytest.mark.parametrize("explosion", EXPLOSIONS[1:4])
def test_a_template_that_runs_away_is_stopped_where_it_is_rendered(
    explosion: str, folder: Path
) -> None:
    (folder / "chat_template.jinja").write_text(explosion + CHAT)
    with pytest.raises(UserError, match=rf"{folder}.*takes more than"):
        Renderer(load_format("tiny"), load_tokenizer(folder))


def test_a_control_token_beyond_the_embedding_that_nothing_writes_is_no_fault(folder: Path) -> None:
    tokenizer = tokenizer_of(BY_NAME["qwen2.5"])
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<image_{i}>" for i in range(60)]})
    tokenizer.save_pretrained(folder)
    imported(folder)


def test_a_snapshot_of_the_hub_s_cache_may_consist_of_links(folder: Path) -> None:
    snapshot = folder.parent / "models--a--b" / "snapshots" / "0123"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    import_model(FolderModel(path=str(snapshot)), folder.parent / "out")


@pytest.mark.parametrize("explosion", EXPLOSIONS)
def test_a_template_that_runs_away_is_stopped(explosion: str) -> None:
    with pytest.raises(BadTemplate, match="takes more than"):
        try_template(explosion + CHAT, {}, DAY)


def test_a_template_renders_as_transformers_renders_it() -> None:
    for family in FAMILIES:
        tokenizer = tokenizer_of(family)
        if "strftime_now" in family.template:
            continue
        shown = chats(family.template, tokenizer.special_tokens_map, DAY)
        users = [{"role": "user", "content": "slotForUser"}]
        own = tokenizer.apply_chat_template(users, tokenize=False, add_generation_prompt=True)
        assert shown.prompt == own
