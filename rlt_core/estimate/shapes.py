"""Shapes of models without loading them: from a config.json, a GGUF header, or as published."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlt_core.config import ScratchModel
from rlt_core.errors import UserError
from rlt_core.graph import Node
from rlt_core.hf_hub import cache_folder, package_gguf
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages import BaseModelConfig
from rlt_core.store import Ref, Store

PUBLISHED = Path(__file__).parent / "published.json"
"""config.json of the models that profiles name, each with its address."""
BYTES = 256
SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>", "system\n", "user\n", "assistant\n")
"""Tokens of a scratch model beside bytes and tags (`rlt_core.models`)."""
KV_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8}
"""`num_key_value_heads` where a config.json leaves it out; elsewhere every head has its own."""
NEEDED = {
    "num_attention_heads", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size",
    "max_position_embeddings",
}  # fmt: skip
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Dense decoders with gated MLPs and RMSNorm, whose parameters the formulas below count."""


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    tied: bool
    """The output embedding is the input embedding."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def query(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads; values have as much."""
        return self.kv_heads * self.head_dim

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
        return self.layer_linear + 2 * self.width + 2 * self.head_dim * self.qk_norm

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
    kind = str(config.get("model_type"))
    given = {name: config.get(name) for name in (*NEEDED, "num_key_value_heads", "head_dim")}
    sizes = {name: size for name, size in given.items() if size is not None}
    whole = all(isinstance(size, int) and size > 0 for size in sizes.values())
    if kind not in FAMILIES or not whole or not sizes.keys() >= NEEDED:
        return None
    heads, width = config["num_attention_heads"], config["hidden_size"]
    bias = bool(config.get("attention_bias", False))
    return Shape(
        layers=config["num_hidden_layers"],
        width=width,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or KV_HEADS.get(kind, heads),
        head_dim=config.get("head_dim") or (128 if kind == "qwen3" else width // heads),
        intermediate=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bias or kind == "qwen2",
        o_bias=bias and kind != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=kind == "qwen3",
    )


def of_scratch(model: ScratchModel, format: PromptFormat) -> Shape:
    """The shape of what `rlt_core.models.new_model` builds."""
    return Shape(
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        kv_heads=model.heads,
        head_dim=model.width // model.heads,
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


def base_of(node: Node) -> Node | None:
    """The base model from which a node's model was trained; of a node that reads several, the
    writer's."""
    while node.stage.name != "base-model":
        found = node.inputs.get("model") or node.inputs.get("teacher")
        if found is None:
            return None
        node = found
    return node


class Shapes:
    """Shapes of the models of a graph."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._known: dict[str, Shape | None] = {}

    def of(self, node: Node) -> Shape | None:
        """The shape of the model that a node makes or computes with; None where there is none, or
        only a download would tell."""
        base = base_of(node)
        if base is None:
            return None
        if base.key not in self._known:
            self._known[base.key] = self._of_base(base)
        return self._known[base.key]

    def _of_base(self, node: Node) -> Shape | None:
        config = node.config
        assert isinstance(config, BaseModelConfig)
        if config.scratch is not None:
            assert config.format is not None
            return of_scratch(config.scratch, config.format)
        kind, _, identity = (config.imported or "").partition(":")
        if kind == "folder":
            return _of_file(Path(node.paths["source"]) / "config.json")
        if kind == "hub":
            repo, _, commit = identity.rpartition("@")
            cached = cache_folder() / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
            found = _of_file(cached / "config.json") or of_config(published().get(repo, {}))
            return found or self._committed(node.ref)
        if kind == "artifact":
            return self._committed(Ref(kind="model", key=identity))
        return self._committed(node.ref) or _of_gguf(package_gguf(node.paths["source"]))

    def _committed(self, ref: Ref) -> Shape | None:
        manifest = self._store and self._store.manifest(ref.kind, ref.key)
        if not self._store or not manifest:
            return None
        path = f"{self._store.folder(manifest)}/model/config.json"
        data = self._store.files.read(path)
        return _of_json(data, path) if data else None


def _of_file(path: Path) -> Shape | None:
    return _of_json(path.read_bytes(), str(path)) if path.is_file() else None


def _of_json(data: bytes, path: str) -> Shape | None:
    try:
        return of_config(TypeAdapter(dict[str, Any]).validate_json(data))
    except ValidationError as error:
        raise UserError(f"{path}: no JSON object: {error.errors()[0]['msg']}") from None


@cache
def _of_gguf(path: Path) -> Shape | None:
    """From a GGUF file's header (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""
    from gguf import GGUFReader

    reader = GGUFReader(path)

    def field(name: str) -> Any:
        found = reader.get_field(name)
        return found.contents() if found else None

    kind = field("general.architecture")
    sizes = {tensor.name: tensor.shape for tensor in reader.tensors}
    names = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "max_position_embeddings": "context_length",
    }
    config = {ours: field(f"{kind}.{theirs}") for ours, theirs in names.items()}
    return of_config(
        {
            **config,
            "model_type": kind,
            "vocab_size": int(sizes["token_embd.weight"][-1]),
            "tie_word_embeddings": "output.weight" not in sizes,
        }
    )
