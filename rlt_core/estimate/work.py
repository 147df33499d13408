"""Tokens of a node, and the time that GPUs take for them."""

from dataclasses import dataclass

from rlt_core.config import GRPOConfig, SFTConfig, StageResources
from rlt_core.estimate.memory import GIB
from rlt_core.estimate.shapes import Shape

TRAINING, READING, DECODING = 0.40, 0.50, 0.60
"""Shares of a GPU's peak that are reached: matrix products in training and in passes without
gradients, memory bandwidth in decoding. Assumptions."""
LAUNCH_S = 0.025
"""The shortest step of the transformers engine: its kernels are launched one by one. An
assumption."""
SEQUENCES = 256
"""Completions that a vLLM engine samples side by side at most. An assumption."""


@dataclass(frozen=True)
class GPU:
    """A card, as the representative of its memory size."""

    name: str
    gib: float
    bf16: float
    """FLOP/s of dense bfloat16 products."""
    fp32: float
    bandwidth: float
    """Bytes/s of its memory."""


GPUS = (
    GPU("RTX 4090", 24, 165.2e12, 82.6e12, 1.008e12),
    GPU("L40S", 48, 362e12, 91.6e12, 0.864e12),
    GPU("H100 SXM", 80, 989e12, 67e12, 3.35e12),
)
"""From NVIDIA's data sheets: https://images.nvidia.com/aem-dam/Solutions/geforce/ada/
nvidia-ada-gpu-architecture.pdf, https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413,
https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306."""


def gpu_of(resources: StageResources) -> GPU:
    """The smallest card that has the memory; the largest for all that is larger."""
    return next((gpu for gpu in GPUS if resources.gpu_gib <= gpu.gib), GPUS[-1])


@dataclass(frozen=True)
class ProcessLayout:
    """The processes that compute a node."""

    resources: StageResources
    world: int
    """Processes on all machines."""
    half: bool
    """Matrix products are in bfloat16."""

    @property
    def gpu(self) -> GPU:
        return gpu_of(self.resources)

    @property
    def number_bytes(self) -> int:
        """Bytes of a number in matrix products."""
        return 2 if self.half else 4

    @property
    def flops(self) -> float:
        """Peak FLOP/s of all processes."""
        return self.world * (self.gpu.bf16 if self.half else self.gpu.fp32)

    def training_s(self, flops: float) -> float:
        return flops / (self.flops * TRAINING)

    def reading_s(self, flops: float) -> float:
        return flops / (self.flops * READING)


def read_flops(shape: Shape, sequences: float, length: float) -> float:
    """FLOPs of a forward pass: 2 for each weight and token, and 4 for each query, key and width of
    attention, half of which the causal mask leaves (arXiv 2203.15556, appendix F)."""
    weights = shape.layers * shape.layer + shape.vocabulary * shape.width
    return sequences * length * (2 * weights + 2 * shape.layers * shape.query * length)


def train_flops(
    shape: Shape, sequences: float, length: float, config: SFTConfig | GRPOConfig, again: bool
) -> float:
    """FLOPs of training: the backward pass takes twice the forward pass; with LoRA once, since
    frozen weights need no gradient; `again`: activations are computed twice (checkpointing)."""
    passes = (2 if config.lora else 3) + again
    return passes * read_flops(shape, sequences, length)


def decode_s(
    shape: Shape,
    layout: ProcessLayout,
    completions: float,
    prompt: float,
    tokens: float,
    limit: int,
) -> float:
    """Seconds to sample completions of so many tokens on average, `limit` at most.

    A step reads all weights and the caches of the completions under way, and multiplies each
    completion's token with the weights.
    """
    resources, gpu = layout.resources, layout.gpu
    number = layout.number_bytes
    weights = number * shape.parameters
    cache = shape.kv_bytes(prompt + tokens / 2, number, number)
    share = completions / layout.world
    flops = read_flops(shape, 1, 1)
    peak = gpu.bf16 if layout.half else gpu.fp32
    prefill = layout.reading_s(read_flops(shape, completions, prompt))
    if resources.engine == "vllm":
        split = resources.tensor_parallel
        free = split * resources.vllm_memory * resources.gpu_gib * GIB - weights
        most = max(1.0, min(SEQUENCES, free / shape.kv_bytes(prompt + tokens, number, number)))
        batch = min(most, share)
        bandwidth, peak = split * gpu.bandwidth, split * peak
        step = (weights + batch * cache) / (bandwidth * DECODING) + batch * flops / (peak * READING)
        return prefill / split + share / batch * tokens * step
    batch = max(1, resources.tokens_per_batch // int(prompt + limit))
    batch = min(batch, share)
    read = (weights + batch * cache) / (gpu.bandwidth * DECODING)
    step = max(LAUNCH_S, read + batch * flops / (peak * READING))
    return prefill + share / batch * limit * step
