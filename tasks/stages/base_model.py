"""base-model: a small Llama trained from scratch, or a model from outside."""

from pathlib import Path

from rlt_core.config import FolderModel, HubModel, ModelSource, PackageModel
from rlt_core.errors import UserError
from rlt_core.models import import_model
from rlt_core.stages import BaseModelConfig
from rlt_core.training.base import train_base
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Train a scratch model without the test questions, or import a model."""
    config = ctx.config_as(BaseModelConfig)
    if config.scratch is None:
        assert config.imported is not None
        return import_model(_source(config.imported, ctx), ctx.out / "model")
    assert config.format is not None
    held_out = [row["question"] for row in ctx.rows("questions") if row["split"] != "train"]
    return train_base(config.scratch, held_out, ctx.format, ctx.training(config.scratch.seed))


def _source(imported: str, ctx: StageContext) -> ModelSource:
    """Locate the content that the config names. Raises UserError if it changed meanwhile."""
    from rlt_core.hf_hub import source_digest

    kind, _, identity = imported.partition(":")
    source: ModelSource
    if kind == "hub":
        repo, _, revision = identity.rpartition("@")
        if revision == "unpinned":
            raise UserError(
                f"{repo}: no commit is pinned; `rlt fetch` downloads the newest and pins it, or "
                "name one: hub:org/name@commit"
            )
        return HubModel(repo=repo, revision=revision)
    if kind == "artifact":
        return FolderModel(path=str(ctx.store.intact(ctx.store.find(identity, "model")) / "model"))
    path = ctx.spec.paths["source"]
    source = FolderModel(path=str(Path(path))) if kind == "folder" else PackageModel(package=path)
    if source_digest(source) != identity:
        raise UserError(f"{path} changed since the run was planned; run the command again")
    return source
