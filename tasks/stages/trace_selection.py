"""trace-selection: the best explanations of each question that its student can learn from → the
tables `traces`, and `dropped` with the reason of each that was not eligible."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.models.auto import AutoConfig

from rlt_core.data.trace_selection import unusable
from rlt_core.errors import UserError
from rlt_core.evaluation.comparisons import cluster_bootstrap
from rlt_core.rows import read_table, table_files, write_rows, write_table
from rlt_core.sql.schemas import TRACES
from rlt_core.stages import TraceSelectionStageConfig
from tasks.stage import StageContext

Row = dict[str, Any]
OF_SCORE = ["trace_id", "question_id", "status", "reward", "rank", "correct"]
OF_TRACE = ["trace_id", "question_id", "text", "finish_reason", "completion_tokens"]
FIXES = {
    "cut": "raise trace_generation.max_tokens", "too_long": "raise max_student_tokens",
    "wrong": "leave out only_correct", "ungradable": "leave out only_correct",
}  # fmt: skip


def run(ctx: StageContext) -> dict[str, float]:
    """Rank eligible traces by their reward, question by question."""
    config = ctx.config_as(TraceSelectionStageConfig)
    renderer, questions = ctx.renderer("student", "student"), ctx.training_questions()
    text_config = AutoConfig.from_pretrained(ctx.model("student")).get_text_config()
    positions = text_config.max_position_embeddings
    longest = min(config.selection.max_student_tokens or positions, positions)
    scores = {row["trace_id"]: row for row in ctx.rows("scores", columns=OF_SCORE)}
    asked = {row["question_id"]: row for row in questions}
    eligible: dict[str, list[Row]] = {}
    dropped: list[Row] = []
    traces = ctx.rows("traces", columns=OF_TRACE)
    for number, trace in enumerate(traces, 1):
        question, score = asked[trace["question_id"]], scores[trace["trace_id"]]
        think = renderer.encode_block(trace["text"])
        row = renderer.student_sft_row(question["question"], think, question["solution"])
        fault = unusable(trace, score, len(row.input_ids), longest, config.selection)
        if fault:
            detail = f"{trace['trace_id']}: {fault[1]}"
            dropped.append({"row": number, "question_id": trace["question_id"],
                            "reason": fault[0], "detail": detail})  # fmt: skip
        else:
            eligible.setdefault(trace["question_id"], []).append(score)
    reasons = Counter(sorted(row["reason"] for row in dropped))
    if not eligible:
        counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        fix = FIXES[reasons.most_common(1)[0][0]]
        raise UserError(f"no explanation can be kept ({counts}); {fix}, or take another teacher")
    for group in eligible.values():
        group.sort(key=lambda score: score["rank"])
    chosen = [score for group in eligible.values() for score in group[: config.selection.keep]]
    wanted = pa.array(sorted(score["trace_id"] for score in chosen), pa.string())
    files = table_files(ctx.tables("traces"), "traces")
    tables = [read_table(file, schema=TRACES) for file in files]
    kept = [table.filter(pc.is_in(table["trace_id"], value_set=wanted)) for table in tables]
    write_table(ctx.out / "traces.parquet", pa.concat_tables(kept))
    write_rows(ctx.out / "dropped.parquet", "dropped", dropped)
    return {
        "questions": len(eligible),
        "questions_without": len(questions) - len(eligible),
        "kept": len(chosen),
        "traces": len(traces),
        "trace_tokens": sum(trace["completion_tokens"] or 0 for trace in traces),
        **{reason: float(count) for reason, count in reasons.items()},
        **_gain(list(eligible.values())),
    }


def _gain(groups: Sequence[Sequence[Row]]) -> dict[str, float]:
    """Rewards of the best against the mean of a question's eligible traces, over questions, with
    a 95% interval where there are several."""
    best = [group[0]["reward"] for group in groups]
    mean = [sum(score["reward"] for score in group) / len(group) for group in groups]
    found = cluster_bootstrap(np.subtract(best, mean))
    means = {
        "mean_reward": sum(best) / len(best),
        "group_reward": sum(mean) / len(mean),
        "gain": found.value,
    }
    interval = {"gain_low": found.low, "gain_high": found.high}
    return means | (interval if len(groups) > 1 else {})  # one question says nothing of others
