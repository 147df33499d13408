"""endpoint-generation: an LLM's explanations, `n` per question → the tables `traces`, `dropped`."""

from rlt_core.config.endpoint import Endpoint, EndpointTeacherConfig
from rlt_core.data.trace_selection import choose
from rlt_core.endpoint import chat_request, hash_of
from rlt_core.llm_traces import Row, WantedTrace, WantedTraces
from rlt_core.rows import read_rows
from rlt_core.stages import EndpointGenerationConfig
from tasks.stage import StageContext

MANY_EQUAL = 0.5
"""Share of a question's further samples that repeat one, above which the endpoint seems to ignore
temperature or seed."""


def run(ctx: StageContext) -> dict[str, float]:
    """Drop and list explanations without a usable answer; the question's others stay."""
    config = ctx.config_as(EndpointGenerationConfig)
    endpoint, teacher = Endpoint.of_environment(), config.teacher
    questions = choose(ctx.training_questions(), teacher.n_questions, config.seed)
    wanted = [_wanted(ctx, teacher, row, i) for row in questions for i in range(teacher.n)]
    traces = WantedTraces("endpoint-generation", teacher, ctx.renderer("tokenizer"), wanted)
    metrics = traces.write(ctx.work, endpoint, ctx.out, ctx.progress, ctx.allowance(endpoint))
    rows = read_rows(ctx.out, "traces", ["question_id", "text", "completion_tokens"])
    further = len(rows) - len({row["question_id"] for row in rows})
    equal = len(rows) - len({(row["question_id"], row["text"]) for row in rows})
    return {
        **metrics,
        "questions": len(questions),
        "mean_tokens": sum(row["completion_tokens"] for row in rows) / len(rows),
        "alarm_equal_samples": equal > further * MANY_EQUAL,
    }


def _wanted(
    ctx: StageContext, teacher: EndpointTeacherConfig, question: Row, sample: int
) -> WantedTrace:
    """Return the `sample`-th explanation of a question. Its number is hashed as well, so that `n`
    samples are `n` requests where the endpoint takes no seed."""
    seed = None if teacher.seed is None else teacher.seed + ctx.seed * teacher.n + sample
    texts = {name: question[name] for name in ("question", "solution")}
    request = chat_request(teacher, seed, **texts)
    if teacher.top_p < 1:
        request["top_p"] = teacher.top_p
    row = {
        "trace_id": f"{question['question_id']}-{sample}",
        "question_id": question["question_id"],
        "seed": ctx.seed,
        "teacher": teacher.name,
        "sample": sample,
    }
    return WantedTrace(row, question, request, hash_of({**request, "sample": sample}))
