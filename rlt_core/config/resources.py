"""Where and how fast; never hashed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from rlt_core.config.base import Fraction, Frozen, Positive


class StageResources(Frozen):
    """Where one stage runs and how fast."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto: a GPU if there is one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates text."""
    processes: Positive = 1
    """Processes of one machine that share a node's work, one a GPU (or `tensor_parallel`), where
    its stage can be shared: training, generation, scoring, evaluation."""
    machines: Positive = 1
    """Runs of the worker pool, each with `processes`, that share a node's work: the steps of
    training, or the shards of generation, scoring and evaluation."""
    gpu_gib: float = Field(default=80.0, gt=0)
    """Memory of one GPU in GiB, into which a plan must fit."""
    host_gib: float | None = Field(default=None, gt=0)
    """Main memory of a machine in GiB, into which a plan must fit; empty: `rlt run` takes what its
    machine has, and nothing else checks it."""
    disk_gb: float | None = Field(default=None, gt=0)
    """Free disk space in GB where the store is or, for a store on S3, on each machine that
    computes; empty: as `host_gib`."""
    sharding: Literal["none", "fsdp", "hybrid"] = "none"
    """Training: every process holds the whole model, or its share of weights, gradients and
    optimiser states (FSDP2): one of all processes, or of those of its machine (`hybrid`: less talk
    between machines, more memory)."""
    tensor_parallel: Positive = 1
    """GPUs over which one vLLM engine splits the model; 1 for one on a trainer's own GPU."""
    vllm_memory: Fraction = 0.9
    """Share of a GPU's memory that a vLLM engine takes."""
    vllm_server: str | None = None
    """Address, as `http://host:8000`, of a `vllm serve` on other GPUs that draws the rollouts of
    GRPO; empty: an engine on the trainer's own GPU. Read where `engine` is vllm."""
    threads: Positive = 1
    """CPU threads a process."""
    micro_batch_size: Positive = 32
    """Sequences a forward and backward pass of training."""
    tokens_per_batch: Positive = 16384
    """Tokens a forward pass of scoring, and of the prompts and completions of one generation
    batch."""
    offload: bool = False
    """A frozen model leaves the accelerator while another one computes: less memory, more time."""
    shard_questions: Positive = 64
    """Questions a shard of generation and scoring, requests a shard of evaluation (at most
    `evaluation.n` completions of a question each); a shard commits on its own."""
    checkpoint_every_steps: Positive = 25
    """Optimiser steps between two checkpoints of training."""
    nodes_per_run: Positive = 1
    """Nodes of one stage that travel to a worker pool as one run; more where nodes are small."""
    allow_other_format: bool = False
    """Use a model with another prompt format than the one that it was made with."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class Resources(StageResources):
    """Where and how fast. Never hashed: it may not change what is computed."""

    cores: Positive = 2
    """Threads of all nodes that run side by side on this machine; those on its GPUs have a GPU for
    each of their processes instead."""
    stages: dict[str, dict[str, Any]] = Field(default={})
    """Stage name, or `stage:variant` with `*` for any letters -> fields of `StageResources` that
    differ there; a variant's go before its stage's."""

    @model_validator(mode="after")
    def _stage_fields(self) -> Resources:
        common = self._common()
        for name, changed in self.stages.items():
            try:
                StageResources.model_validate(common | changed)
            except ValidationError as error:
                found = [
                    InitErrorDetails(
                        type=one["type"],
                        loc=("stages", name, *one["loc"]),
                        input=one["input"],
                        ctx=one.get("ctx", {}),
                    )
                    for one in error.errors()
                ]
                raise ValidationError.from_exception_data(error.title, found) from None
        return self

    def of(self, stage: str, variant: str = "") -> StageResources:
        """The resources of a stage, or of those of its nodes that have this variant."""
        fields = self._common()
        for name in self._names_of(stage, variant):
            fields |= self.stages[name]
        return StageResources.model_validate(fields)

    def name_of(self, stage: str, variant: str) -> str:
        """What in `stages` names the node most closely, or would."""
        return next(reversed(self._names_of(stage, variant)), stage)

    def _common(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in StageResources.model_fields}

    def _names_of(self, stage: str, variant: str) -> list[str]:
        """The stage's own name first."""
        named = [(name, *name.partition(":")[::2]) for name in self.stages]
        of_variant = [
            name
            for name, of_stage, pattern in named
            if of_stage == stage and pattern and fnmatchcase(variant, pattern)
        ]
        return [name for name in (stage,) if name in self.stages] + of_variant
