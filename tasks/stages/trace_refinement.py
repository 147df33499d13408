"""trace-refinement: traces, each rewritten by an LLM → the tables `traces` and `dropped`."""

from __future__ import annotations

from rlt_core.config.endpoint import Endpoint
from rlt_core.endpoint import REASONS, Refinement, usage
from rlt_core.stages import TraceRefinementConfig
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Drop and list traces without a usable answer; their old text is never used instead."""
    config = ctx.config_as(TraceRefinementConfig)
    endpoint = Endpoint.of_environment()
    traces, renderer = ctx.rows("traces"), ctx.renderer("tokenizer")
    refinement = Refinement(config.endpoint, renderer, traces, ctx.rows("questions"))
    answers, asked = refinement.answers(ctx.work, endpoint, ctx.progress)
    dropped = [row["reason"] for row in refinement.write(answers, ctx.out)]
    return {
        "traces": len(traces) - len(dropped),
        "dropped": len(dropped),
        **{reason: dropped.count(reason) for reason in REASONS},
        "requests": len(refinement.requests),
        "asked_now": asked,
        **usage(answers.values(), endpoint),
    }
