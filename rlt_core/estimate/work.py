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


class ProcessLayout:
    """The processes that compute a node: `world` on all machines."""

    def __init__(self, resources: StageResources, world: int, dtype: str) -> None:
        self.resources, self.world, self.gpu = resources, world, gpu_of(resources)
        self.number = 2 if dtype == "bfloat16" else 4
        """Bytes of a number in matrix products."""
        self.flops = self.gpu.bf16 if dtype == "bfloat16" else self.gpu.fp32
        """Peak FLOP/s of one process."""

    def training_s(self, flops: float) -> float:
        return flops / (self.world * self.flops * TRAINING)

    def reading_s(self, flops: float) -> float:
        return flops / (self.world * self.flops * READING)

    def decode_s(
        self, shape: Shape, completions: float, prompt: float, tokens: float, limit: int
    ) -> float:
        """Seconds to sample completions of so many tokens on average, `limit` at most.

        A step reads all weights and the caches of the completions under way, and multiplies each
        completion's token with the weights.
        """
        resources, number = self.resources, self.number
        weights = number * shape.parameters
        cache = shape.kv_bytes(prompt + tokens / 2, number, number)
        share, prefill = completions / self.world, read_flops(shape, completions, prompt)
        split, least, steps = 1, LAUNCH_S, float(limit)
        batch = float(max(1, resources.tokens_per_batch // int(prompt + limit)))
        if resources.engine == "vllm":
            split, least, steps = resources.tensor_parallel, 0.0, tokens
            free = split * resources.vllm_memory * resources.gpu_gib * GIB - weights
            longest = shape.kv_bytes(prompt + tokens, number, number)
            batch = max(1.0, min(SEQUENCES, free / longest))
        batch = min(batch, share)
        read_s = (weights + batch * cache) / (self.gpu.bandwidth * DECODING)
        step_s = read_s + batch * read_flops(shape, 1, 1) / (self.flops * READING)
        return self.reading_s(prefill) / split + share / batch * steps * max(least, step_s / split)


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
