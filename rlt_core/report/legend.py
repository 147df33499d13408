"""What each model of a report is, from how it was made."""

from __future__ import annotations

from collections.abc import Mapping

from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.scores import RANKED


def legend(data: ReportData) -> list[Row]:
    """One row per evaluated model, the students of ranks as one."""
    made = {part.manifest.ref.key: part for part in data.nodes}
    rows: dict[str, Row] = {}
    for model, parts in data.evaluations.parts.items():
        part = made.get(parts[0].manifest.inputs["model"].key)
        what = _what(part, made)
        if RANKED.fullmatch(model) and data.name_of(model) == model:
            model = f"{model.rpartition('-')[0]}-1, -2, …"
            what = what.replace("the best ", "the best, second best, … ")
        rows.setdefault(model, {"model": data.name_of(model), "variant": model, "what": what})
    return list(rows.values())


def _what(part: Part | None, made: Mapping[str, Part]) -> str:
    """A model in words."""
    if part is None:
        return "not in this report"
    config = part.manifest.config

    def source(name: str) -> str:
        ref = part.manifest.inputs.get(name)
        return _what(made.get(ref.key) if ref else None, made)

    match part.stage:
        case "base-model":
            imported = config.get("imported")
            return f"{imported}, as it is" if imported else "trained from scratch, without RL"
        case "student-sft":
            return f"{_start(source('model'))} fine-tuned on {_traces(part, made)}"
        case "student-grpo":
            return f"RL on correct answers, from: {source('model')}"
        case "teacher-sft":
            return "the teacher before RL"
        case "teacher-grpo":
            return "the teacher after RL"
        case _:
            return part.manifest.label


def _start(model: str) -> str:
    return "the base" if model.endswith(("as it is", "without RL")) else f"({model})"


def _traces(part: Part, made: Mapping[str, Part]) -> str:
    """What a student learned from."""
    config, inputs = part.manifest.config, part.manifest.inputs
    if config.get("traces") == "dataset":
        return "the data set's own traces"
    if config.get("traces") == "none":
        return "the solutions alone"
    traces = made.get(inputs["traces"].key) if "traces" in inputs else None
    if traces is None:
        return "traces"
    teacher = traces.manifest.inputs.get("teacher")
    writer = f"traces of {_what(made.get(teacher.key), made)}" if teacher else traces.manifest.label
    if rank := config.get("rank"):
        best = "the best" if rank == 1 else f"number {rank}"
        return f"{best} by {config.get('order', 'reward')} of each question's {writer}"
    return writer
