"""trace-refinement: traces, each rewritten by an LLM → the tables `traces` and `dropped`."""

from rlt_core.config.endpoint import Endpoint
from rlt_core.endpoint import chat_request, hash_of
from rlt_core.errors import UserError
from rlt_core.llm_traces import WantedTrace, WantedTraces
from rlt_core.stages import TraceRefinementConfig
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Drop and list traces without a usable answer; their old text is never used instead."""
    config = ctx.config_as(TraceRefinementConfig).refinement
    endpoint = Endpoint.of_environment()
    questions = {row["question_id"]: row for row in ctx.rows("questions")}
    wanted = []
    for row in ctx.rows("traces"):
        question = questions.get(row["question_id"])
        if question is None:
            raise UserError(
                f"trace-refinement: trace {row['trace_id']} has no question; give the traces' own "
                "questions as input"
            )
        texts = {name: question[name] for name in ("question", "solution")}
        request = chat_request(config, config.seed, **texts, trace=row["text"])
        row |= {"teacher": config.name}
        wanted.append(WantedTrace(row, question, request, hash_of(request)))
    traces = WantedTraces("trace-refinement", config, ctx.renderer("tokenizer"), wanted)
    return traces.write(ctx.work, endpoint, ctx.out, ctx.progress, ctx.allowance(endpoint))
