"""Bytes on one GPU at the moments of a stage at which most is held, by what holds them.

Letters: P parameters, D width, Q width of all heads, K width of all key heads, I width of the MLP,
V vocabulary, L layers. What autograd keeps is counted tensor by tensor from the forward pass of
transformers' Llama and Qwen2 under SDPA (tests compare with what it saves); temporary tensors, from
the code named at each formula.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rlt_core.config import GRPOConfig, SFTConfig, StageResources
from rlt_core.estimate.shapes import Shape
from rlt_core.training.data_order import KEPT_CHECKPOINTS

GIB = 1 << 30
USABLE = 0.93
"""Share of a GPU's memory that tensors may take: the CUDA context, NCCL's buffers and gaps between
blocks take the rest. An assumption."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""TRL 1.16 computes log-probs in tiles of at most so many tokens and words
(`trl/kernels/chunked_logprob.py`, `trl/trainer/utils.py`)."""
BLOCK_LOGITS, CPU_BLOCK_LOGITS = 1 << 26, 1 << 21
CPU_TOKENS = 2048
"""Limits of scoring (`rlt_core.scoring.lm_head`, `rlt_core.scoring.logprobs`)."""
ENGINE = "engine's weights"

Parts = dict[str, int]
"""What holds bytes at a moment."""


def on_gpu(resources: StageResources) -> bool:
    """Whether a stage is computed on a GPU by what its resources say: `device` is `cuda`, or it is
    `auto` and the engine is vLLM. A GPU that `auto` may find by chance does not count."""
    return resources.device == "cuda" or (resources.device == "auto" and resources.engine == "vllm")


@dataclass(frozen=True)
class Memory:
    """The moment at which a GPU holds most."""

    parts: Parts
    limit: int
    """Bytes that the parts may take."""

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def fullest(moments: Iterable[Parts], resources: StageResources) -> Memory:
    """The moment of a stage that needs most, on a GPU as `resources` describe it."""
    parts = max(moments, key=lambda each: sum(each.values()))
    held = {name: size for name, size in parts.items() if size}
    return Memory(held, int(resources.gpu_gib * GIB * USABLE))


class Trained:
    """A model in training, as one process of `world` holds it."""

    def __init__(
        self, shape: Shape, recipe: SFTConfig | GRPOConfig, resources: StageResources, world: int
    ) -> None:
        self.shape, self.resources, self.world = shape, resources, world
        self.lora = recipe.lora
        self.half = recipe.dtype == "bfloat16"
        """It computes in bfloat16 under autocast; trained weights are float32 in any case."""
        self.sharded = resources.sharding != "none"
        among = {"none": 1, "fsdp": world, "hybrid": resources.processes}
        self.shards = among[resources.sharding]
        """Processes that share a copy of the model (`rlt_core.training.sharding`)."""
        self.compute = 2 if self.half else 4
        """Bytes of a number in matrix products."""
        self.stored = self.compute if self.lora else 4
        """Bytes of a weight of the model itself, and of a number of the residual stream, which has
        the embeddings' format."""
        self.trainable = shape.lora(self.lora.rank) if self.lora else shape.parameters
        self.layer_trainable = self.trainable // shape.layers if self.lora else shape.layer_linear
        """Trained parameters of a layer's linear maps."""
        self.head_trainable = 0 if self.lora else shape.vocabulary * shape.width
        """Trained parameters of the output embedding."""

    def states(self) -> Parts:
        """Held throughout: weights, AdamW's two float32 moments, and the buckets in which DDP sends
        gradients."""
        buckets = self.world > 1 and not self.sharded
        return {
            "weights": self.stored * self.shape.parameters // self.shards,
            "adapters": 4 * self.trainable // self.shards if self.lora else 0,
            "optimizer": 8 * self.trainable // self.shards,
            "gradient buckets": 4 * self.trainable * buckets,
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
        each linear map keeps a cast of its own (q, k, v, gate, up: 5 D). Frozen maps need no input
        (8 D less), but their adapters do, at rank r.
        """
        shape, c = self.shape, self.compute
        width = (16 if self.lora else 24) + 2 * self.half
        query = 6 if self.lora and self.half else 2 * c
        adapters = 7 * c * self.lora.rank if self.lora else 0
        saved = width * shape.width + query * shape.query + adapters
        saved += 2 * c * shape.key + 4 * c * shape.intermediate
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

    def step(self, tokens: int, accumulated: bool) -> dict[str, Parts]:
        """Moments of an optimiser step whose micro-batches have so many tokens, padding included.

        `accumulated`: gradients of an earlier micro-batch are there from the beginning. Else they
        grow while activations are freed, layer by layer: most is held at either end.
        """
        shape, compute, recomputes = self.shape, self.compute, self.resources.gradient_checkpointing
        states, gradients = self.states(), self.gradients()
        saved, layer = self.activations(tokens), self.layer_activations(tokens)
        forward = states | {"gradients": gradients * accumulated, "activations": saved}
        backward = states | {"gradients": gradients}
        # A tile: logits and the weights of its words. Gradients: of hidden states and the head.
        rows, words = min(tokens, TILE_TOKENS), min(shape.vocabulary, TILE_WORDS)
        tile = compute * (rows * TILE_WORDS + words * shape.width)
        head = 4 * (tokens * shape.width + self.head_trainable)
        # The widest place of a layer's backward pass is its MLP: three gradients of the inner
        # width, two of the residual stream.
        working = tokens * (3 * compute * shape.intermediate + 2 * self.stored * shape.width)
        around = 2 if self.sharded else 1
        copies = around if self.sharded or recomputes else shape.layers
        # FSDP: gradients of a layer before and while they are summed over processes, in the
        # products' format and in float32; the head's, which wait for the last layer; at the end
        # embeddings, their gradients and the buffer in which these are summed.
        reduced = self.sharded * ((compute + 4) * self.layer_trainable + 4 * self.head_trainable)
        embeddings = self.sharded * (self.stored if self.lora else 12) * shape.embeddings

        def gathering(moment: Parts, layers: int, other: int = 0, **more: int) -> Parts:
            return moment | {"gathered weights": self.gathered(layers) + other} | more

        last = saved + working + recomputes * layer
        return {
            "forward": gathering(forward, 2 if self.sharded else shape.layers, logits=tile),
            "head": gathering(forward, 0 if recomputes else copies, logits=tile + head),
            "last layer": gathering(forward, copies, reduced, activations=last),
            "first layer": gathering(backward, around, reduced, activations=layer + working),
            "update": backward | {"update": max(embeddings, 4 * self.trainable // self.shards)},
        }

    # ------------------------------------------------------------ without gradients
    def reading(self, tokens: int) -> Parts:
        """The policy read without gradients, between two steps: rollouts and scoring. Autocast
        copies the output embedding, which is called as a module here."""
        copied = 2 * self.head_trainable if self.half and not self.sharded else 0
        return self.states() | {
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


def scored_tokens(resources: StageResources, longest: int) -> int:
    """Tokens of a pass of scoring at most."""
    most = resources.tokens_per_batch
    return max(most if on_gpu(resources) else min(most, CPU_TOKENS), longest)


def scored_logits(resources: StageResources) -> int:
    """A block of logits of scoring (`rlt_core.scoring.lm_head`) at most: in float32, as they come,
    and for KL over the vocabulary the student's, their difference and a copy."""
    return 16 * (BLOCK_LOGITS if on_gpu(resources) else CPU_BLOCK_LOGITS)


def sampling_logits(shape: Shape, compute: int, sequences: int) -> int:
    """Logits of a step of decoding: as they come, float32, log-probs, probabilities, and their sums
    in float64 (`rlt_core.generation.hf`)."""
    return sequences * shape.vocabulary * (compute + 4 + 4 + 4 + 8)


def engine(
    shape: Shape, resources: StageResources, compute: int, longest: int, samples: int
) -> Memory:
    """An engine on a model of its own; `longest`: tokens of the longest prompt and completion
    together, `samples` of each prompt."""
    if resources.engine == "vllm":
        return vllm(shape, resources, compute, longest)
    sequences = max(1, resources.tokens_per_batch // longest)
    prompts = -(-sequences // samples) * longest
    weights = {"weights": compute * shape.parameters}
    decoding = {
        "KV cache": shape.kv_bytes(sequences * longest, compute, compute),
        "logits": sampling_logits(shape, compute, sequences),
    }
    prefill = {"activations": pass_activations(shape, compute, compute, prompts)}
    return fullest([weights | prefill, weights | decoding], resources)


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
    cache = max(shape.kv_bytes(longest, compute, compute) // split, limit - weights - working)
    return Memory({ENGINE: weights, "working memory": working, "KV cache": cache}, limit)


def grpo(
    policy: Trained, student: Shape | None, config: GRPOConfig, longest: int,
    micro: tuple[int, bool],
) -> Memory:  # fmt: skip
    """Rollouts, scoring by policy and `student` (the teacher's reward) and the update of a step;
    the reference model and the student stay loaded. Where the trainer fits but a vLLM engine on the
    same GPU does not, the engine's memory.

    `longest`: tokens of the longest prompt and completion together; `micro`: arguments of `step`.
    """
    resources, shape, number = policy.resources, policy.shape, policy.compute
    beside: Parts = {}
    if config.beta > 0 and not config.lora:
        beside["reference"] = 4 * shape.parameters // policy.shards
    if student and not resources.offload:
        beside["reward student"] = number * student.parameters
    moments = list(policy.step(*micro).values())
    own_engine = None
    if resources.engine == "transformers":
        most = -(-config.questions_per_step * config.group_size // policy.world)
        sequences = min(max(1, resources.tokens_per_batch // longest), most)
        prompts = min(sequences, -(-sequences // config.group_size))
        moments.append(policy.reading(prompts * longest))
        cache = {
            "KV cache": policy.kv_bytes(sequences * longest),
            "logits": sampling_logits(shape, number, sequences),
        }
        moments.append(policy.reading(sequences) | cache)
    elif not resources.vllm_server:
        own_engine = vllm(shape, resources, number, longest)
        moments.append(policy.states() | {"vLLM engine": own_engine.peak})
    if student:
        reads, logits = scored_tokens(resources, longest), scored_logits(resources)
        moments.append(policy.reading(reads) | {"logits": logits})
        by_student = {
            "reward student": number * student.parameters,
            "gathered weights": policy.gathered(shape.layers) if policy.sharded else 0,
            "activations": pass_activations(student, number, number, reads),
            "logits": logits,
        }
        moments.append(policy.states() | by_student)
    trainer = fullest([beside | parts for parts in moments], resources)
    if own_engine and own_engine.peak > own_engine.limit and trainer.peak <= trainer.limit:
        return own_engine
    return trainer


# ---------------------------------------------------------------- main memory and disk
@dataclass(frozen=True)
class TrainingFiles:
    """Bytes that a training keeps on disk and gathers in main memory."""

    checkpoint: int = 0
    """Bytes of one checkpoint: float32 weights, AdamW's two moments, and the reference model where
    it is synced; under LoRA of adapters alone."""
    count: int = 0
    """Checkpoints on disk at once: those that are kept, and the one that is being written."""
    model: int = 0
    """Bytes of the trained model as it is saved."""
    gathered: int = 0
    """In the main memory of the first machine, for a checkpoint or the saved model."""

    @property
    def disk(self) -> int:
        """Bytes on disk at most: all checkpoints, or those that are kept beside the model."""
        kept = min(self.count, KEPT_CHECKPOINTS)
        return max(self.count * self.checkpoint, kept * self.checkpoint + self.model)


def training_files(
    shape: Shape, config: SFTConfig | GRPOConfig, steps: int, resources: StageResources
) -> TrainingFiles:
    """Return the files of a training of this many steps, as `rlt_core.training.checkpoint` and
    `rlt_core.training.sharding` write them.

    Sharded, the first process gathers weights (4 P), then both moments (8 P); at the end the
    weights again beside the model to save. Not sharded, on a GPU, it copies weights to main memory
    to save them, moments one by one.
    """
    trained = shape.lora(config.lora.rank) if config.lora else shape.parameters
    synced = isinstance(config, GRPOConfig) and config.reference_sync and config.beta > 0
    model = (2 if config.dtype == "bfloat16" else 4) * shape.parameters
    sharded = max(8 * trained, 4 * trained + model)
    return TrainingFiles(
        checkpoint=12 * trained + (4 * shape.parameters if synced else 0),
        count=min(steps // resources.checkpoint_every_steps, KEPT_CHECKPOINTS + 1),
        model=model,
        gathered=max(4 * trained, model) if resources.sharding == "none" else sharded,
    )
