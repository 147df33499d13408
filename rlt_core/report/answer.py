"""What a reader asks first: the question of the run, and the differences that answer it. The words
are in `report.md.jinja`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.scores import BASE
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
