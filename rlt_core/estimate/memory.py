"""Bytes on one GPU at the moments of a stage at which most is held, by what holds them.

Letters: P parameters, D width, Q width of all heads, K width of all key heads, I width of the MLP,
V vocabulary, L layers. What autograd keeps is counted tensor by tensor from the forward pass of
transformers' Llama and Qwen2 under SDPA (a test compares with what it really saves); what a moment
briefly works with, from the code named at each formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlt_core.config import LoRA, StageResources
from rlt_core.estimate.shapes import Shape

GIB = 1 << 30
USABLE = 0.93
"""Share of a GPU's memory that tensors may take: the CUDA context, NCCL's buffers and gaps between
blocks take the rest. An assumption."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""TRL 1.16 computes log-probs in tiles of so many logits (`trl/kernels/chunked_logprob.py`,
`trl/trainer/utils.py`)."""
BLOCK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
CPU_TOKENS = 2048
"""Of scoring (`rlt_core.scoring.head`, `rlt_core.scoring.passes`)."""
VLLM_TOKENS, VLLM_SEQUENCES = 16384, 1024
"""Tokens and sequences of a step for which vLLM keeps room, by default on a GPU of 70 GiB and more
(`vllm/engine/arg_utils.py`, `get_batch_defaults`); on a smaller one a half and a quarter of it."""

Parts = Mapping[str, int]
Moments = Mapping[str, Parts]
"""Moment -> what holds bytes then."""


@dataclass(frozen=True)
class Memory:
    """The moment at which a GPU holds most."""

    parts: Parts
    limit: int
    """Bytes that the parts may take."""

    @property
    def peak(self) -> int:
        """Bytes at that moment."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether a GPU has room for it."""
        return self.peak <= self.limit


def fullest(moments: Moments, resources: StageResources) -> Memory:
    """The moment of a stage that needs most, in the memory of a GPU."""
    parts = max(moments.values(), key=lambda each: sum(each.values()))
    held = {name: size for name, size in parts.items() if size}
    return Memory(held, int(resources.gpu_gib * GIB * USABLE))


@dataclass(frozen=True)
class Trained:
    """A model in training, as one process of `world` holds it."""

    shape: Shape
    half: bool
    """Computes in bfloat16 under autocast; weights that are trained are float32 all the same."""
    lora: LoRA | None
    resources: StageResources
    world: int

    @property
    def shards(self) -> int:
        """Processes that share a copy of the model (`rlt_core.training.sharding`)."""
        among = {"none": 1, "fsdp": self.world, "hybrid": self.resources.processes}
        return among[self.resources.sharding]

    @property
    def sharded(self) -> bool:
        """Whether no process has it whole (FSDP2)."""
        return self.resources.sharding != "none"

    @property
    def _compute(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else 4

    @property
    def _stored(self) -> int:
        """Bytes of a weight of the model itself."""
        return self._compute if self.lora else 4

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream, which has the embeddings' format."""
        return self._stored

    @property
    def trainable(self) -> int:
        """Parameters that are trained."""
        return self.shape.lora(self.lora.rank) if self.lora else self.shape.parameters

    def states(self) -> dict[str, int]:
        """Held from the first step to the last: weights, AdamW's two float32 moments, and the
        buckets in which DDP sends gradients."""
        adapters = 4 * self.trainable if self.lora else 0
        buckets = 4 * self.trainable if self.world > 1 and not self.sharded else 0
        return {
            "weights": self._stored * self.shape.parameters // self.shards,
            "adapters": adapters // self.shards,
            "optimizer": 8 * self.trainable // self.shards,
            "gradient buckets": buckets,
        }

    def gradients(self) -> int:
        """Float32, from the first backward pass of a step to its end."""
        return 4 * self.trainable // self.shards

    def gathered(self, layers: int) -> int:
        """Weights of so many layers and of the embeddings, whole on this process: under FSDP in
        their own format, linear maps in that of the products; else the bfloat16 copies that
        autocast keeps of trained float32 weights."""
        shape = self.shape
        adapters = self.trainable // shape.layers if self.lora else 0
        if self.sharded:
            linear = self._compute * (shape.layer_linear + adapters)
            return layers * linear + self._stored * shape.embeddings
        if not self.half:
            return 0
        return layers * 2 * (adapters if self.lora else shape.layer_linear)

    def copied_head(self) -> int:
        """Autocast's copy of the output embedding, where it is called as a module."""
        copied = self.half and not self.lora and not self.sharded
        return 2 * self.shape.vocabulary * self.shape.width if copied else 0

    # ------------------------------------------------------------ activations
    def layer_activations(self, tokens: int) -> int:
        """What autograd saves of one layer."""
        return tokens * layer_activations(self.shape, self.half, self.lora)

    def activations(self, tokens: int) -> int:
        """What autograd saves of a whole pass: with checkpointing, what enters each layer. The last
        norm and the head keep three vectors (their inputs and outputs)."""
        shape = self.shape
        kept = shape.layers * tokens * self.stream * shape.width
        if not self.resources.gradient_checkpointing:
            kept = shape.layers * self.layer_activations(tokens)
        last = (4 if self.lora else 8) + self.stream
        return kept + tokens * last * shape.width

    def step(self, tokens: int, accumulated: bool) -> Moments:
        """Moments of an optimiser step whose micro-batches have so many tokens, padding included.

        `accumulated`: gradients of an earlier micro-batch are there from the beginning. Else they
        come while activations go, layer by layer: most is held at either end.
        """
        shape, recomputes = self.shape, self.resources.gradient_checkpointing
        states, gradients = self.states(), self.gradients()
        held = {**states, "gradients": gradients if accumulated else 0}
        all_held = {**states, "gradients": gradients}
        saved, layer = self.activations(tokens), self.layer_activations(tokens)
        working = self._layer_gradients(tokens) + (layer if recomputes else 0)
        around = 2 if self.sharded else 1
        copies = around if self.sharded or recomputes else shape.layers
        return {
            "forward": {
                **held,
                "activations": saved,
                "gathered weights": self.gathered(2 if self.sharded else shape.layers),
                "logits": self._tile(tokens),
            },
            "backward of the head": {
                **held,
                "activations": saved,
                "gathered weights": self.gathered(0 if recomputes else copies),
                "logits": self._tile(tokens) + self._head_gradients(tokens),
            },
            "backward of the last layer": {
                **held,
                "activations": saved + working,
                "gathered weights": self.gathered(copies) + self._reduced(),
            },
            "backward of the first layer": {
                **all_held,
                "activations": layer + self._layer_gradients(tokens),
                "gathered weights": self.gathered(around) + self._reduced(),
            },
            "end of the backward pass": {
                **all_held,
                "gathered weights": self._reduced_embeddings(),
            },
            "update": {**all_held, "update": 4 * self.trainable // self.shards},
        }

    def _tile(self, tokens: int) -> int:
        """A tile of logits and its words' weights, in the products' format."""
        rows, words = min(tokens, TILE_TOKENS), min(self.shape.vocabulary, TILE_WORDS)
        return self._compute * (rows * TILE_WORDS + words * self.shape.width)

    def _head_gradients(self, tokens: int) -> int:
        """Float32 gradients of the hidden states and, if it is trained, of the head."""
        head = 0 if self.lora else self.shape.vocabulary * self.shape.width
        return 4 * (tokens * self.shape.width + head)

    def _layer_gradients(self, tokens: int) -> int:
        """What the backward pass of an MLP, the widest place, works with: three gradients of its
        inner width, two of the residual stream."""
        shape = self.shape
        return tokens * (3 * self._compute * shape.intermediate + 2 * self.stream * shape.width)

    def _reduced(self) -> int:
        """FSDP: gradients of a layer before and while they are summed over processes, in the
        products' format and in float32; and the head's, which waits for the last layer."""
        if not self.sharded:
            return 0
        shape = self.shape
        layer = self.trainable // shape.layers if self.lora else shape.layer_linear
        head = 0 if self.lora else shape.vocabulary * shape.width
        return (self._compute + 4) * layer + 4 * head

    def _reduced_embeddings(self) -> int:
        """FSDP: embeddings, their gradients, and the buffer in which these are summed."""
        if not self.sharded:
            return 0
        return (self._stored if self.lora else 12) * self.shape.embeddings

    # ------------------------------------------------------------ without gradients
    def reading(self, tokens: int) -> dict[str, int]:
        """The policy read without gradients, between two steps: rollouts and scoring."""
        return {
            **self.states(),
            "gathered weights": self.gathered(self.shape.layers) + self.copied_head(),
            "activations": pass_activations(self.shape, self._compute, self.stream, tokens),
        }

    def kv_bytes(self, tokens: int) -> int:
        """A cache of the policy: rotary embeddings of a float32 stream make float32 keys."""
        return self.shape.kv_bytes(tokens, key_bytes=self.stream, value_bytes=self._compute)


def layer_activations(shape: Shape, half: bool, lora: LoRA | None) -> int:
    """Bytes a token that autograd saves of one layer.

    Float32: x and its normed form at both norms, what q/k/v and gate/up read (6 D), queries and
    attention's output (2 Q), keys and values (2 K), gate, its SiLU, up and their product (4 I), and
    the log-sum-exp a head. In bfloat16 each linear map keeps a cast of its own (q, k, v, gate, up:
    5 D). Frozen maps need no input, but their adapters do, at rank r.
    """
    d, q, k, i = shape.width, shape.query, shape.key, shape.intermediate
    norms = 4 * shape.heads + 8
    if lora is None:
        if half:
            return 26 * d + 4 * q + 4 * k + 8 * i + norms
        return 4 * (6 * d + 2 * q + 2 * k + 4 * i) + norms
    if half:
        return 18 * d + 6 * q + 4 * k + 8 * i + 14 * lora.rank + norms
    return 16 * d + 8 * q + 8 * k + 16 * i + 28 * lora.rank + norms


def pass_activations(shape: Shape, compute: int, stream: int, tokens: int) -> int:
    """A forward pass that keeps nothing: an MLP's three inner tensors, the residual stream before
    and after it, and its normed form."""
    return tokens * (3 * compute * shape.intermediate + (2 * stream + 4) * shape.width)


def scored_tokens(resources: StageResources, longest: int, device: str) -> int:
    """Tokens of a pass of scoring at most."""
    budget = resources.tokens_per_batch
    return max(min(budget, CPU_TOKENS) if device == "cpu" else budget, longest)


def head_block(compute: int, device: str, *, ranks: bool = False, full_kl: bool = False) -> int:
    """A block of logits of scoring (`rlt_core.scoring.head`): in float32, and as they come; for
    ranks also compared, and that counted; for KL over the vocabulary also the student's, their
    difference and a copy."""
    each = 16 if full_kl else 9 if ranks else 4 if compute == 4 else 4 + compute
    return BLOCK_LOGITS[device] * each


def drawing(shape: Shape, compute: int, sequences: int) -> int:
    """Logits of a step of decoding: as they come, float32, log-probs, probabilities, and their sums
    in float64 (`rlt_core.generation.transformers_engine.draw`)."""
    return sequences * shape.vocabulary * (compute + 4 + 4 + 4 + 8)


def engine(
    shape: Shape, resources: StageResources, compute: int, longest: int, samples: int
) -> Moments:
    """The transformers engine on a model of its own; `longest`: tokens of the longest prompt and
    completion together, `samples` of each prompt."""
    weights = compute * shape.parameters
    sequences = max(1, resources.tokens_per_batch // longest)
    tokens = sequences * longest
    prompts = -(-sequences // samples) * longest
    return {
        "prefill": {
            "weights": weights,
            "activations": pass_activations(shape, compute, compute, prompts),
        },
        "decoding": {
            "weights": weights,
            "KV cache": shape.kv_bytes(tokens, compute, compute),
            "logits": drawing(shape, compute, sequences),
        },
    }


def vllm(shape: Shape, resources: StageResources, compute: int, longest: int) -> Memory:
    """A vLLM engine takes its share of a GPU whatever the model: weights and room for a step first,
    keys and values in the rest, of which the longest sequence needs so much."""
    limit = int(resources.vllm_memory * resources.gpu_gib * GIB)
    split = resources.tensor_parallel
    weights = compute * shape.parameters // split
    small = resources.gpu_gib < 70
    tokens, sequences = (VLLM_TOKENS, VLLM_SEQUENCES) if not small else (8192, 256)
    working = pass_activations(shape, compute, compute, tokens) // split
    working += sequences * shape.vocabulary * 8
    needed = shape.kv_bytes(longest, compute, compute) // split
    cache = max(needed, limit - weights - working)
    return Memory({"weights": weights, "working memory": working, "KV cache": cache}, limit)
