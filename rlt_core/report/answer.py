"""What a reader asks first: the question of the run, the differences that answer it, and what each
model is. The other words are in `report.md.jinja`."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.scores import BASE, RANKED
from rlt_core.report.texts import Markdown, cell, code, number, points

LEARN = (
    "Do students learn more from the explanations of an RLT than from the data set's own traces?"
)
ASKED = {
    "full-pipeline": LEARN,
    "table-1": LEARN,
    "table-2": "Is a student of an RLT a better start for RL on correctness than other students?",
    "countdown": "Does an RLT teach a domain that it never saw better than RL in that domain does?",
    "rank-ablation": "Do students learn more from the traces with the better rewards?",
    "compare-traces": "Do RLT traces have better rewards than the data set's own?",
    "reward-ablation": "Which parts of the teacher's reward do students need?",
    "teach": "Which explanations will the student learn most from?",
    "bench-teachers": "Which teacher explains best for which student?",
}
"""Experiment -> its question, such that the primary contrast above 0 means yes where it can."""
ANY = "Is there a difference?"
"""The question of other experiments."""
ROLES = {
    BASE: "the base model",
    "dataset": "the student of the data set's traces",
    "rlt": "the student of RLT traces",
    "rlt+rl": "the student of RLT traces after RL",
}


@dataclass(frozen=True)
class PairedContrast:
    """A difference, ours minus theirs, on the same questions."""

    ours: Markdown
    theirs: Markdown
    name: str
    """As figures have it."""
    difference: Estimate
    seeds: int
    """Training seeds that the interval holds for; 1: for those that were trained alone."""
    answers: bool
    """Whether it is the one that the experiment's question is about."""
    task: str | None = None
    """None: a difference of rewards."""
    values: tuple[float | None, ...] = ()
    """Scores of both."""
    p: float | None = None
    detectable: float | None = None
    parts: Sequence[Part] = ()
    """The evaluations of both."""

    @property
    def shown(self) -> str:
        """The difference as the tables have it."""
        if self.task is None:
            return f"{number(self.difference)} in reward"
        return points(self.difference).replace(" ", " points ", 1)


def contrasts(data: ReportData) -> list[PairedContrast]:
    """What a finished or unfinished run has to say, the primary difference first."""
    return [one for each in (_scores, _ranks, _compared, _rewards) for one in each(data)]


def _scores(data: ReportData) -> Iterator[PairedContrast]:
    """The contrasts of the tables, the primary one first."""
    if not data.experiment:
        return
    rows = data.experiment.contrasts
    if data.has_rows and data.ranks and not any(row["primary"] for row in rows):
        return  # the ranks are the question
    for row in rows:
        table = data.experiment.tables[row["task"]]
        both = (row, next(one for one in table if one["model"] == row["baseline"]))
        ours, theirs = (_named(one, data.has_rows) for one in both)
        prefix = "method_" if row["method_difference"] else ""
        yield PairedContrast(
            ours=ours, theirs=theirs, name=_minus(one["row"] for one in both),
            difference=row[f"{prefix}difference"], seeds=row["seeds"] or 1 if prefix else 1,
            answers=row["primary"], task=row["task"],
            values=tuple(one["value"] and one["value"].value for one in both),
            p=row[f"{prefix}p"], detectable=row["detectable"],
            parts=[part for one in both for part in data.evaluations.parts[one["model"]]],
        )  # fmt: skip


def _minus(names: Iterable[str]) -> str:
    return " − ".join(names)  # noqa: RUF001


def _named(row: Row, has_rows: bool) -> Markdown:
    """A model, by the name of its row or by what it is."""
    model = row["model"]
    if has_rows:
        return Markdown(f"“{cell(row['row'])}”")
    return Markdown(f"{ROLES[model]} ({code(model)})" if model in ROLES else code(model))


def _ranks(data: ReportData) -> Iterator[PairedContrast]:
    ranks = data.ranks
    if ranks and ranks["first_minus_last"]:
        first, last = both = (ranks["lines"][0], ranks["lines"][-1])
        yield PairedContrast(
            ours=Markdown(f"students of rank {first['rank']} by {cell(ranks['ranked_by'])}"),
            theirs=Markdown(f"students of rank {last['rank']}"),
            name=_minus(f"rank {one['rank']}" for one in both),
            difference=ranks["first_minus_last"], seeds=len(first["by_seed"]),
            answers=data.title == "rank-ablation", task=ranks["task"],
            values=tuple(one["value"].value for one in both),
            parts=[part for one in both for part in data.evaluations.parts[one["student"]]],
        )  # fmt: skip


def _compared(data: ReportData) -> Iterator[PairedContrast]:
    if data.compared:
        line, (theirs, ours) = data.compared["lines"][0], data.compared["names"]
        yield PairedContrast(
            ours=Markdown(f"traces of {code(ours)}"), theirs=Markdown(f"traces of {code(theirs)}"),
            name=_minus((ours, theirs)), difference=line["method"] or line["checkpoint"],
            seeds=data.compared["seeds"] if line["method"] else 1, answers=True, p=line["p"],
        )  # fmt: skip


def _rewards(data: ReportData) -> Iterator[PairedContrast]:
    if data.reward_gain:
        yield PairedContrast(
            ours=Markdown("the teacher after RL"), theirs=Markdown("the teacher before it"),
            name=_minus(("after RL", "before")), difference=data.reward_gain,
            seeds=len(data.seeds), answers=False,
        )  # fmt: skip


# ---------------------------------------------------------------- the models
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
