"""trace-import: traces from elsewhere → the tables `traces`, `questions` and `dropped`."""

from pathlib import Path

from rlt_core.data.imports import import_traces, own_traces
from rlt_core.stages import TraceImportConfig
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Encode the texts with the base model's tokenizer."""
    config = ctx.config_as(TraceImportConfig)
    renderer = ctx.renderer("tokenizer")
    if config.digest is None:
        return own_traces(ctx.rows("questions"), config.name, renderer, ctx.out)
    path = Path(ctx.spec.paths["source"])
    return import_traces(path, config.name, renderer, ctx.out, config.max_dropped, ctx.progress)
