"""Parameters of models that nobody loads, against those that transformers counts."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from rlt_core.config import ScratchModel
from rlt_core.errors import UserError
from rlt_core.estimate.shapes import of_config, of_scratch, published, shape_of_base
from rlt_core.graph import Node
from rlt_core.models import new_model, tiny_tokenizer
from rlt_core.prompts.format import load_format, shipped
from rlt_core.stages import STAGES, BaseModelConfig

FAMILIES = (LlamaConfig, Qwen2Config, Qwen3Config, MistralConfig)


def counted(config: Any) -> int:
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


@given(
    family=st.sampled_from(FAMILIES),
    layers=st.integers(1, 3),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from((None, 4, 8)),
    tied=st.booleans(),
    vocabulary=st.integers(5, 70),
    bias=st.booleans(),
)
def test_parameters_are_those_of_transformers(
    family, layers, groups, kv_heads, head_dim, tied, vocabulary, bias, tmp_path_factory
):
    heads = groups * kv_heads
    biased = {"attention_bias": bias, "mlp_bias": bias} if family is LlamaConfig else {}
    explicit = {} if head_dim is None else {"head_dim": head_dim}
    config = family(
        num_hidden_layers=layers, hidden_size=heads * 8, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=24, vocab_size=vocabulary,
        max_position_embeddings=64, tie_word_embeddings=tied, **explicit, **biased,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    config.save_pretrained(folder)
    shape = of_config(json.loads((folder / "config.json").read_text()))
    assert shape is not None
    assert shape.parameters == counted(config)
    assert shape.positions == 64


@pytest.mark.parametrize("format", shipped())
def test_scratch_models_have_the_shape_that_is_built(format):
    model = ScratchModel(layers=2, width=48, heads=3, max_positions=77)
    built = new_model(model, tiny_tokenizer(load_format(format), 77))
    shape = of_scratch(model, load_format(format))
    assert shape.parameters == built.num_parameters()
    assert shape.vocabulary == built.config.vocab_size
    assert shape.positions == 77


HUB = {
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "bespokelabs/Bespoke-Stratos-7B": 7_615_616_512,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/QwQ-32B": 32_763_876_352,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
}
"""Parameters that the hub shows beside each model's files."""


@pytest.mark.parametrize("repo", sorted(HUB))
def test_published_shapes_have_the_parameters_of_the_hub(repo):
    config = published()[repo]
    shape = of_config(config)
    assert shape is not None and shape.parameters == HUB[repo]
    assert f"huggingface.co/{repo}/" in config["source"]


def test_other_families_and_sizes_that_are_none_are_not_guessed():
    assert of_config({"model_type": "deepseek_v3", "hidden_size": 7168}) is None
    whole = published()["Qwen/Qwen2.5-7B-Instruct"]
    for field in ("num_attention_heads", "hidden_size", "num_key_value_heads", "head_dim"):
        for value in (0, -1, "28", [28], 1.5):
            assert of_config(whole | {field: value}) is None
    assert of_config(whole | {"vocab_size": None}) is None


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff"])
def test_a_config_json_that_is_none_is_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    base = Node(STAGES["base-model"], BaseModelConfig(imported="folder:x", format=None),
                paths={"source": str(tmp_path)})  # fmt: skip
    with pytest.raises(UserError, match=r"config\.json: no JSON object") as caught:
        shape_of_base(base, None)
    assert "\n" not in str(caught.value)
