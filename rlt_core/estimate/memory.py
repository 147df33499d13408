"""Bytes on one GPU at the moments of a stage at which most is held, by what holds them.

Letters: P parameters, D width, Q width of all heads, K width of all key heads, I width of the MLP,
V vocabulary, L layers. What autograd keeps is counted tensor by tensor from the forward pass of
transformers' Llama and Qwen2 under SDPA (tests compare with what it saves); temporary tensors, from
the code named at each formula.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rlt_core.config import GRPOConfig, LoRA, SFTConfig, StageResources
from rlt_core.estimate.shapes import Shape

GIB = 1 << 30
USABLE = 0.93
"""Share of a GPU's memory that tensors may take: the CUDA context, NCCL's buffers and gaps between
blocks take the rest. An assumption."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""TRL 1.16 computes log-probs in tiles of at most so many tokens and words
(`trl/kernels/chunked_logprob.py`, `trl/trainer/utils.py`)."""
BLOCK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}
CPU_TOKENS = 2048
"""Limits of scoring (`rlt_core.scoring.lm_head`, `rlt_core.scoring.passes`)."""

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
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit


def fullest(moments: Moments, resources: StageResources) -> Memory:
    """The moment of a stage that needs most, on a GPU as `resources` describe it."""
    parts = max(moments.values(), key=lambda each: sum(each.values()))
    held = {name: size for name, size in parts.items() if size}
    return Memory(held, int(resources.gpu_gib * GIB * USABLE))


@dataclass(frozen=True)
class Trained:
    """A model in training, as one process of `world` holds it."""

    shape: Shape
    recipe: SFTConfig | GRPOConfig
    resources: StageResources
    world: int

    @property
    def half(self) -> bool:
        """Whether it computes in bfloat16 under autocast; trained weights are float32 in any
        case."""
        return self.recipe.dtype == "bfloat16"

    @property
    def lora(self) -> LoRA | None:
        return self.recipe.lora

    @property
    def shards(self) -> int:
        """Processes that share a copy of the model (`rlt_core.training.sharding`)."""
        among = {"none": 1, "fsdp": self.world, "hybrid": self.resources.processes}
        return among[self.resources.sharding]

    @property
    def sharded(self) -> bool:
        return self.resources.sharding != "none"

    @property
    def compute(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else 4

    @property
    def stored(self) -> int:
        """Bytes of a weight of the model itself, and of a number of the residual stream, which has
        the embeddings' format."""
        return self.compute if self.lora else 4

    @property
    def trainable(self) -> int:
        return self.shape.lora(self.lora.rank) if self.lora else self.shape.parameters

    @property
    def layer_trainable(self) -> int:
        """Trained parameters of a layer's linear maps."""
        return self.trainable // self.shape.layers if self.lora else self.shape.layer_linear

    @property
    def head_trainable(self) -> int:
        """Trained parameters of the output embedding."""
        return 0 if self.lora else self.shape.vocabulary * self.shape.width

    def states(self) -> dict[str, int]:
        """Held throughout: weights, AdamW's two float32 moments, and the buckets in which DDP sends
        gradients."""
        adapters = 4 * self.trainable if self.lora else 0
        buckets = 4 * self.trainable if self.world > 1 and not self.sharded else 0
        return {
            "weights": self.stored * self.shape.parameters // self.shards,
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
        if self.sharded:
            adapters = self.layer_trainable if self.lora else 0
            linear = self.compute * (self.shape.layer_linear + adapters)
            return layers * linear + self.stored * self.shape.embeddings
        return layers * 2 * self.layer_trainable if self.half else 0

    # ------------------------------------------------------------ a step
    def layer_activations(self, tokens: int) -> int:
        """Bytes that autograd saves of one layer: float32 x and its normed form at both norms, what
        q/k/v and gate/up read (6 D), queries and attention's output (2 Q), keys and values (2 K),
        gate, its SiLU, up and their product (4 I), and the log-sum-exp of each head. In bfloat16
        each linear map keeps a cast of its own (q, k, v, gate, up: 5 D). Frozen maps need no input,
        but their adapters do, at rank r.
        """
        shape = self.shape
        d, q, k, i = shape.width, shape.query, shape.key, shape.intermediate
        if self.lora:
            saved = 18 * d + 6 * q + 4 * k + 8 * i + 14 * self.lora.rank
            if not self.half:
                saved = 16 * d + 8 * q + 8 * k + 16 * i + 28 * self.lora.rank
        else:
            saved = 26 * d + 4 * q + 4 * k + 8 * i
            if not self.half:
                saved = 24 * d + 8 * q + 8 * k + 16 * i
        return tokens * (saved + 4 * shape.heads + 8)

    def activations(self, tokens: int) -> int:
        """Bytes that autograd saves of a whole pass: with checkpointing, each layer's input. The
        last norm and the head keep three vectors (their inputs and outputs)."""
        shape = self.shape
        if self.resources.gradient_checkpointing:
            kept = shape.layers * tokens * self.stored * shape.width
        else:
            kept = shape.layers * self.layer_activations(tokens)
        return kept + tokens * ((4 if self.lora else 8) + self.stored) * shape.width

    def step(self, tokens: int, accumulated: bool) -> Moments:
        """Moments of an optimiser step whose micro-batches have so many tokens, padding included.

        `accumulated`: gradients of an earlier micro-batch are there from the beginning. Else they
        grow while activations are freed, layer by layer: most is held at either end.
        """
        shape, compute, recomputes = self.shape, self.compute, self.resources.gradient_checkpointing
        states, gradients = self.states(), self.gradients()
        saved = self.activations(tokens)
        forward = {
            **states, "gradients": gradients if accumulated else 0, "activations": saved
        }  # fmt: skip
        backward = {**states, "gradients": gradients}
        # A tile: logits and the weights of its words. Gradients: of hidden states and the head.
        rows, words = min(tokens, TILE_TOKENS), min(shape.vocabulary, TILE_WORDS)
        tile = compute * (rows * TILE_WORDS + words * shape.width)
        head = 4 * (tokens * shape.width + self.head_trainable)
        # The widest place of a layer's backward pass is its MLP: three gradients of the inner
        # width, two of the residual stream.
        layer = self.layer_activations(tokens)
        working = tokens * (3 * compute * shape.intermediate + 2 * self.stored * shape.width)
        around = 2 if self.sharded else 1
        copies = around if self.sharded or recomputes else shape.layers
        # FSDP: gradients of a layer before and while they are summed over processes, in the
        # products' format and in float32; the head's, which wait for the last layer; at the end
        # embeddings, their gradients and the buffer in which these are summed.
        reduced = self.sharded * ((compute + 4) * self.layer_trainable + 4 * self.head_trainable)
        embeddings = self.sharded * (self.stored if self.lora else 12) * shape.embeddings
        return {
            "forward": {
                **forward,
                "gathered weights": self.gathered(2 if self.sharded else shape.layers),
                "logits": tile,
            },
            "backward of the head": {
                **forward,
                "gathered weights": self.gathered(0 if recomputes else copies),
                "logits": tile + head,
            },
            "backward of the last layer": {
                **forward,
                "activations": saved + working + recomputes * layer,
                "gathered weights": self.gathered(copies) + reduced,
            },
            "backward of the first layer": {
                **backward,
                "activations": layer + working,
                "gathered weights": self.gathered(around) + reduced,
            },
            "end of the backward pass": {**backward, "gathered weights": embeddings},
            "update": {**backward, "update": 4 * self.trainable // self.shards},
        }

    # ------------------------------------------------------------ without gradients
    def reading(self, tokens: int) -> dict[str, int]:
        """The policy read without gradients, between two steps: rollouts and scoring. Autocast
        copies the output embedding, which is called as a module here."""
        copied = 2 * self.head_trainable if self.half and not self.sharded else 0
        return {
            **self.states(),
            "gathered weights": self.gathered(self.shape.layers) + copied,
            "activations": pass_activations(self.shape, self.compute, self.stored, tokens),
        }

    def kv_bytes(self, tokens: int) -> int:
        """A cache of the policy: rotary embeddings of a float32 stream make float32 keys."""
        return self.shape.kv_bytes(tokens, key_bytes=self.stored, value_bytes=self.compute)


def pass_activations(shape: Shape, compute: int, stream: int, tokens: int) -> int:
    """A forward pass that keeps nothing: an MLP's three inner tensors, the residual stream before
    and after it, and its normed form; `compute` and `stream`: bytes of their numbers."""
    return tokens * (3 * compute * shape.intermediate + (2 * stream + 4) * shape.width)


def scored_tokens(resources: StageResources, longest: int, device: str) -> int:
    """Tokens of a pass of scoring at most."""
    budget = resources.tokens_per_batch
    return max(min(budget, CPU_TOKENS) if device == "cpu" else budget, longest)


def head_block(compute: int, device: str, *, ranks: bool = False, full_kl: bool = False) -> int:
    """A block of logits of scoring (`rlt_core.scoring.lm_head`): in float32, and as they come; for
    ranks also compared, and that counted; for KL over the vocabulary also the student's, their
    difference and a copy."""
    each = 16 if full_kl else 9 if ranks else 4 if compute == 4 else 4 + compute
    return BLOCK_LOGITS[device] * each


def sampling_logits(shape: Shape, compute: int, sequences: int) -> int:
    """Logits of a step of decoding: as they come, float32, log-probs, probabilities, and their sums
    in float64 (`rlt_core.generation.hf`)."""
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
            "logits": sampling_logits(shape, compute, sequences),
        },
    }


def vllm(shape: Shape, resources: StageResources, compute: int, longest: int) -> Memory:
    """A vLLM engine takes its share of a GPU whatever the model: weights and the tensors of a step
    of its default tokens and sequences (`vllm/engine/arg_utils.py`, `get_batch_defaults`) first,
    keys and values in the rest, which has to hold the longest sequence's."""
    limit = int(resources.vllm_memory * resources.gpu_gib * GIB)
    split = resources.tensor_parallel
    weights = compute * shape.parameters // split
    tokens, sequences = (16384, 1024) if resources.gpu_gib >= 70 else (8192, 256)
    working = pass_activations(shape, compute, compute, tokens) // split
    working += sequences * shape.vocabulary * 8
    needed = shape.kv_bytes(longest, compute, compute) // split
    cache = max(needed, limit - weights - working)
    return Memory({"weights": weights, "working memory": working, "KV cache": cache}, limit)


# ---------------------------------------------------------------- GRPO
@dataclass(frozen=True)
class Rollouts:
    """Completions of a GRPO step."""

    batch: int
    """Completions of a step, `group` of each question."""
    group: int
    longest: int
    """Tokens of the longest prompt and completion together."""
    micro_tokens: int
    accumulated: bool
    """As for `Trained.step`."""


def grpo(
    policy: Trained,
    student: Shape | None,
    rollouts: Rollouts,
    *,
    reference: bool,
    full_kl: bool,
    device: str,
) -> Memory:
    """Rollouts, scoring by policy and `student` (the teacher's reward) and the update of a step;
    the reference model and the student stay loaded. Where the trainer fits but a vLLM engine on the
    same GPU does not, the engine's memory."""
    resources, shape, number = policy.resources, policy.shape, policy.compute
    beside: dict[str, int] = {}
    if reference:
        beside["reference"] = 4 * shape.parameters // policy.shards
    if student is not None and not resources.offload:
        beside["reward student"] = number * student.parameters
    moments = dict(policy.step(rollouts.micro_tokens, rollouts.accumulated))
    engine = None
    if resources.engine == "transformers":
        most = -(-rollouts.batch // policy.world)
        sequences = min(max(1, resources.tokens_per_batch // rollouts.longest), most)
        prompts = min(sequences, -(-sequences // rollouts.group))
        tokens = sequences * rollouts.longest
        moments["prefill"] = policy.reading(prompts * rollouts.longest)
        moments["rollouts"] = {
            **policy.reading(sequences),
            "KV cache": policy.kv_bytes(tokens),
            "logits": sampling_logits(shape, number, sequences),
        }
    elif not resources.vllm_server:
        engine = vllm(shape, resources, number, rollouts.longest)
        moments["rollouts"] = {**policy.states(), "vLLM engine": engine.peak}
    if student is not None:
        reads = scored_tokens(resources, rollouts.longest, device)
        moments["scoring by the teacher"] = {
            **policy.reading(reads),
            "logits": head_block(number, device, full_kl=full_kl),
        }
        moments["scoring by the student"] = {
            **policy.states(),
            "reward student": number * student.parameters,
            "gathered weights": policy.gathered(shape.layers) if policy.sharded else 0,
            "activations": pass_activations(student, number, number, reads),
            "logits": head_block(number, device),
        }
    trainer = fullest({name: beside | dict(parts) for name, parts in moments.items()}, resources)
    return engine if engine and trainer.fits and not engine.fits else trainer
