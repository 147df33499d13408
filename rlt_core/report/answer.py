"""What a reader asks first: the question of the run, and the differences that answer it. The words
are in `report.md.jinja`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part
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
    every = (_experiment, _pairs, _ranks, _compared, _rewards)
    return [one for each in every for one in each(data)]


def _experiment(data: ReportData) -> Iterator[PairedContrast]:
    """The primary contrast, named before the run; else the first there is."""
    if not data.experiment:
        return
    rows = [row for row in data.experiment.last if row["difference"]]
    if data.ranks and not any(row["primary"] for row in rows):
        rows = []  # the ranks are the question
    for row in sorted(rows, key=lambda row: not row["primary"]):
        prefix = "method_" if row["method_difference"] else ""
        against = next(one for one in data.experiment.last if one["model"] == row["baseline"])
        both = (row, against)
        ours, theirs = (Markdown(f"“{cell(one['row'])}”") for one in both)
        yield PairedContrast(
            ours=ours, theirs=theirs, name=_minus(one["row"] for one in both),
            difference=row[f"{prefix}difference"], seeds=row["seeds"] or 1 if prefix else 1,
            answers=row["primary"], task=row["task"],
            values=tuple(one["value"] and one["value"].value for one in both),
            p=row[f"{prefix}p"], detectable=row["detectable"],
            parts=[part for one in both for part in data.evaluations.parts[one["model"]]],
        )  # fmt: skip


def _pairs(data: ReportData) -> Iterator[PairedContrast]:
    """The students of the RLT against those of the data set and the base, on the first task."""
    first = next((row["task"] for row in data.totals), None)
    pairs = [pair for pair in data.pairs if pair["task"] == first]
    wanted = [("rlt", "dataset"), ("rlt", BASE), ("rlt+rl", "rlt"), ("dataset", BASE)]
    known = {(pair["model"], pair["against"]): pair for pair in pairs}
    scores = {
        row["model"]: row["value"].value
        for row in data.totals
        if row["task"] == first and row["metric"].startswith("avg@")
    }
    for pair in [known[each] for each in wanted if each in known] or pairs[:1]:
        both = (pair["model"], pair["against"])
        evaluated = (data.evaluations.asked(one, pair["task"]) for one in both)
        yield PairedContrast(
            ours=_role(both[0]), theirs=_role(both[1]), name=_minus(both),
            difference=pair["difference"], seeds=pair["seeds"], answers=both == wanted[0],
            task=pair["task"], values=tuple(scores[one] for one in both),
            parts=[part for parts in evaluated for part in parts],
        )  # fmt: skip


def _minus(names: Iterable[str]) -> str:
    return " − ".join(names)  # noqa: RUF001


def _role(model: str) -> Markdown:
    return Markdown(f"{ROLES[model]} ({code(model)})" if model in ROLES else code(model))


def _ranks(data: ReportData) -> Iterator[PairedContrast]:
    ranks = data.ranks
    if not ranks or not ranks.first_minus_last:
        return
    first, last = both = (ranks.lines[0], ranks.lines[-1])
    yield PairedContrast(
        ours=Markdown(f"students of rank {first.rank} by {cell(ranks.ranked_by)}"),
        theirs=Markdown(f"students of rank {last.rank}"),
        name=_minus(f"rank {one.rank}" for one in both),
        difference=ranks.first_minus_last, seeds=len(first.by_seed),
        answers=data.title == "rank-ablation", task=ranks.task,
        values=tuple(one.value or 0.0 for one in both),
        parts=[part for one in both for part in data.evaluations.parts[one.student]],
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
