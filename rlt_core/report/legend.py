"""What each model of a report is, from how it was made."""

import re

from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.scores import RANKED


def legend(data: ReportData) -> list[Row]:
    """One row per evaluated model, the students of ranks as one."""
    names = data.names
    rows: dict[str, Row] = {}
    for model, parts in data.evaluations.parts.items():
        what = _what(parts[0].inputs.get("model"))
        if RANKED.fullmatch(model) and model not in names:
            model = f"{model.rpartition('-')[0]}-1, -2, …"
            what = re.sub("the best by|number [0-9]+ by", "the best, second best, … by", what)
        rows.setdefault(model, {"model": names.get(model, model), "variant": model, "what": what})
    return list(rows.values())


def _what(part: Part | None) -> str:
    """A model in words."""
    if part is None:
        return "not in this report"
    source = part.inputs.get("model")
    start = "the base" if source and source.stage == "base-model" else f"({_what(source)})"
    match part.stage:
        case "base-model":
            imported = part.manifest.config.get("imported")
            return f"{imported}, as it is" if imported else "trained from scratch, without RL"
        case "student-sft":
            return f"{start} fine-tuned on {_traces(part)}"
        case "student-grpo":
            return f"RL on correct answers, from {start}"
        case "teacher-sft":
            return "the teacher before RL"
        case "teacher-grpo":
            return "the teacher after RL"
        case _:
            return part.manifest.label


def _traces(part: Part) -> str:
    """What a student learned from."""
    config, traces = part.manifest.config, part.inputs.get("traces")
    asked = part.manifest.metrics.get("questions") if config.get("n_questions") else None
    some = f", {asked:.0f} questions" if asked else ""
    if traces is None:
        known = {"dataset": "the data set's own traces", "none": "the solutions alone"}
        return known.get(config.get("traces", ""), "traces") + some
    teacher = traces.inputs.get("teacher")
    found = f"traces of {_what(teacher)}" if teacher else traces.manifest.label
    questions = traces.inputs.get("questions")
    if questions and questions.variant:
        found += f" about the questions of {questions.variant}"
    if rank := config.get("rank") or (1 if config.get("fits") else None):
        place = "the best" if rank == 1 else f"number {rank}"
        found = f"{place} by {config.get('order', 'reward')} of each question's {found}"
    return found + some
