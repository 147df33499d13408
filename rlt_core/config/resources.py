"""Where stages run and how fast; never hashed."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from rlt_core.config.base import Engine, Fraction, Frozen, Positive

Tracking = Literal["none", "trackio", "tensorboard", "wandb"]


class StageResources(Frozen):
    """Where one stage runs and how fast."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the tensors; auto: a GPU if there is one."""
    engine: Engine = "transformers"
    """Engine that generates text: `transformers`, `vllm` or, outside RL, `module:class` of your
    own, which is part of the key."""
    processes: Positive = 1
    """Processes per machine that share a node's work in training, generation, scoring and
    evaluation, each with one GPU (or `tensor_parallel`)."""
    machines: Positive = 1
    """Worker-pool runs, each with `processes`, that share a node's work: the steps of training, or
    the shards of generation, scoring and evaluation."""
    gpu_gib: float = Field(default=80.0, gt=0)
    """Memory of one GPU in GiB; a plan that needs more is refused."""
    host_gib: float | None = Field(default=None, gt=0)
    """Main memory of a machine in GiB; a plan that needs more is refused. Empty: `rlt run` takes
    that of its machine, and nothing else checks it."""
    disk_gb: float | None = Field(default=None, gt=0)
    """Free disk space in GB where the store is or, for a store on S3, on each machine that
    computes; empty: as `host_gib`."""
    sharding: Literal["none", "fsdp", "hybrid"] = "none"
    """Training: every process holds the whole model (`none`), or a shard of weights, gradients and
    optimiser states (FSDP2) among all processes (`fsdp`) or among those of its machine (`hybrid`:
    less communication between machines, more memory)."""
    tensor_parallel: Positive = 1
    """GPUs over which one vLLM engine splits the model; an engine on a trainer's GPU has 1."""
    vllm_memory: Fraction = 0.9
    """Share of a GPU's memory that a vLLM engine takes."""
    vllm_server: str | None = None
    """Address, as `http://host:8000`, of a `vllm serve` on other GPUs that samples the rollouts of
    GRPO; empty: an engine on the trainer's own GPU. Read where `engine` is vllm."""
    threads: Positive = 1
    """CPU threads per process."""
    micro_batch_size: Positive = 32
    """Sequences per forward and backward pass of training."""
    tokens_per_batch: Positive = 16384
    """Tokens per forward pass of scoring, and per generation batch (prompts and completions)."""
    offload: bool = False
    """Move a frozen model off the accelerator while another one computes: less memory, more
    time."""
    shard_questions: Positive = 64
    """Questions per shard of generation and scoring, requests per shard of evaluation (each at most
    `evaluation.n` completions of one question); a shard commits on its own."""
    checkpoint_every_steps: Positive = 25
    """Optimiser steps between two checkpoints of training."""
    rollouts_every_steps: Positive | None = None
    """Steps of GRPO between two whose completions the table `rollouts` keeps, with their log-probs,
    beside new ones of two questions that are watched over all of them; the first and the last step
    are always among them. Empty: none."""
    tracking: Tracking = "none"
    """Tracker that gets the metrics of training, and the completions that `rollouts_every_steps`
    keeps: `trackio` (local, `trackio show --project rlt`), `tensorboard` (in `tensorboard/` of the
    store) or `wandb`. `--set tracking=…` is short for it."""
    nodes_per_run: Positive = 1
    """Nodes of one stage that one worker-pool run computes; raise it where nodes are small."""
    allow_other_format: bool = False
    """Use a model with another prompt format than the one it was trained with."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    @field_validator("vllm_server")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        # No user and password: configs are saved in the store.
        if url is not None and not re.fullmatch(r"https?://[^/:?#@][^?#@]*", url):
            raise ValueError("write an address, as http://host:8000")
        return url


class Resources(StageResources):
    """Where stages run and how fast. Never hashed: it may not change what is computed."""

    cores: Positive = 2
    """CPU threads that the nodes which run side by side on this machine share; nodes on GPUs do
    not count."""
    budget_tokens: Positive | None = None
    """Tokens that all traces of a run's graph may take, what is in the store included: completions
    of teachers, prompts and answers of an LLM behind an endpoint. When it is used up, the same
    command with a larger one continues. Empty: no limit."""
    budget_usd: float | None = Field(default=None, gt=0)
    """Likewise the cost of LLMs behind an endpoint, by their prices in the environment."""
    stages: dict[str, dict[str, Any]] = Field(default={})
    """Stage name, or `stage:variant` with `*` for any letters -> fields that differ there; fields
    of a variant take precedence over fields of its stage."""

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
        """Return the resources of a stage, or of its nodes of one variant."""
        fields = self._common()
        for name in self._names_of(stage, variant):
            fields |= self.stages[name]
        return StageResources.model_validate(fields)

    def name_of(self, stage: str, variant: str) -> str:
        """Return the key in `stages` that matches the node most closely, else the stage's name."""
        return next(reversed(self._names_of(stage, variant)), stage)

    def _common(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in StageResources.model_fields}

    def _names_of(self, stage: str, variant: str) -> list[str]:
        """Return the keys in `stages` that match; the stage's own name is the first."""
        found = [stage] if stage in self.stages else []
        for name in self.stages:
            of_stage, _, pattern = name.partition(":")
            if of_stage == stage and pattern and fnmatchcase(variant, pattern):
                found.append(name)
        return found
