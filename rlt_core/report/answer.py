"""What a reader asks first: what was asked, what came out, how certain it is, what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.filesize import decimal

from rlt_core.evaluation.intervals import Estimate
from rlt_core.report import paper
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.scores import BASE
from rlt_core.report.texts import Markdown, cell, code, duration, number, p_value, percent, points

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
FEW_SEEDS = 10
"""Below, intervals over seeds are too narrow (docs/experiments.md)."""


@dataclass(frozen=True)
class PairedContrast:
    """A difference, ours minus theirs, on the same questions."""

    ours: Markdown
    theirs: Markdown
    difference: Estimate
    seeds: int
    """Training seeds that the interval holds for; 1: for those that were trained alone."""
    task: str | None = None
    """None: a difference of rewards."""
    values: tuple[float, float] | None = None
    """Scores of both."""
    p: float | None = None
    detectable: float | None = None
    parts: Sequence[Part] = ()
    """The evaluations of both."""
    name: str = ""
    """As figures have it."""
    answers: bool = False
    """Whether it is the one that the experiment's question is about."""

    @property
    def shown(self) -> str:
        """The difference as the tables have it."""
        if self.task is None:
            return f"{number(self.difference)} in reward"
        difference = points(self.difference)
        return difference.replace(" ", " points ", 1)

    @property
    def verdict(self) -> str:
        """The answer to a question of which it is the contrast."""
        low, high = self.difference.low, self.difference.high
        if low == high == 0:
            return "No difference."
        if low <= 0 <= high:
            return "Undecided: the interval holds 0."
        seed = ", with the seed of this run" if self.seeds == 1 else ""
        return f"{'Yes' if low > 0 else 'No, the reverse'}{seed}."

    @property
    def sentence(self) -> Markdown:
        """The difference in words."""
        where = f" on {code(self.task)}" if self.task else ""
        if self.task == paper.MEAN:
            where = " on the mean over tasks"
        scores = "{}% against {}% correct, ".format(*map(percent, self.values or (0, 0)))
        return Markdown(
            f"{self.ours[0].upper()}{self.ours[1:]} against {self.theirs}{where}: "
            f"{scores if self.values else ''}**{self.shown}**."
        )


@dataclass(frozen=True)
class Summary:
    """The first lines of a report."""

    asked: str
    contrasts: Sequence[PairedContrast]
    """The primary one first."""
    certain: Sequence[Markdown]
    cost: Markdown
    otherwise: Markdown
    """What there is to say without a contrast."""

    @property
    def sentence(self) -> Markdown:
        if not self.contrasts:
            return self.otherwise
        first, verdict = self.contrasts[0], ""
        if first.answers or self.asked == ANY:
            verdict = f"**{first.verdict}** "
        elif self.asked.startswith(("Do", "Is")):
            verdict = "**Not answered:** the models that it needs are not there. So far: "
        return Markdown(verdict + first.sentence)


def answer(data: ReportData) -> Summary:
    """Return what a finished or unfinished run has to say."""
    contrasts = [
        one for each in (_experiment, _pairs, _ranks, _compared, _rewards) for one in each(data)
    ]
    primary = contrasts[0] if contrasts else None
    asked = ASKED.get(data.title) or ANY
    return Summary(asked, contrasts, list(_certain(data, primary)), _cost(data), _otherwise(data))


# ---------------------------------------------------------------- contrasts
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
        yield PairedContrast(
            ours=_quoted(row["row"]), theirs=_quoted(against["row"]),
            difference=row[f"{prefix}difference"], seeds=row["seeds"] or 1 if prefix else 1,
            task=row["task"], values=_values(both),
            p=row[f"{prefix}p"], detectable=row["detectable"],
            parts=[part for one in both for part in data.evaluations.parts[one["model"]]],
            name=_minus(one["row"] for one in both), answers=row["primary"],
        )  # fmt: skip


def _values(both: Sequence[Row]) -> tuple[float, float] | None:
    scores = [row["value"] and row["value"].value for row in both]
    return None if None in scores else (scores[0], scores[1])


def _quoted(name: str) -> Markdown:
    return Markdown(f"“{cell(name)}”")


def _pairs(data: ReportData) -> Iterator[PairedContrast]:
    """The students of the RLT against those of the data set and the base, on the first task."""
    first = next((row["task"] for row in data.totals), None)
    pairs = [pair for pair in data.pairs if pair["task"] == first]
    wanted = [("rlt", "dataset"), ("rlt", BASE), ("rlt+rl", "rlt"), ("dataset", BASE)]
    known = {(pair["model"], pair["against"]): pair for pair in pairs}
    chosen = [known[each] for each in wanted if each in known] or pairs[:1]
    scores = {
        row["model"]: row["value"].value
        for row in data.totals
        if row["task"] == first and row["metric"].startswith("avg@")
    }
    for pair in chosen:
        ours, theirs = pair["model"], pair["against"]
        evaluated = (data.evaluations.asked(one, pair["task"]) for one in (ours, theirs))
        yield PairedContrast(
            ours=_role(ours), theirs=_role(theirs), difference=pair["difference"],
            seeds=pair["seeds"], task=pair["task"], values=(scores[ours], scores[theirs]),
            parts=[part for parts in evaluated for part in parts], name=_minus((ours, theirs)),
            answers=(ours, theirs) == wanted[0],
        )  # fmt: skip


def _minus(names: Iterable[str]) -> str:
    return " − ".join(names)  # noqa: RUF001


def _role(model: str) -> Markdown:
    return Markdown(f"{ROLES[model]} ({code(model)})" if model in ROLES else code(model))


def _ranks(data: ReportData) -> Iterator[PairedContrast]:
    ranks = data.ranks
    if not ranks or not ranks.first_minus_last:
        return
    first, last = ranks.lines[0], ranks.lines[-1]
    yield PairedContrast(
        Markdown(f"students of rank {first.rank} by {cell(ranks.ranked_by)}"),
        Markdown(f"students of rank {last.rank}"),
        ranks.first_minus_last,
        len(first.by_seed),
        ranks.task,
        (first.value or 0.0, last.value or 0.0),
        parts=[part for line in (first, last) for part in data.evaluations.parts[line.student]],
        name=_minus((f"rank {first.rank}", f"rank {last.rank}")),
        answers=data.title == "rank-ablation",
    )


def _compared(data: ReportData) -> Iterator[PairedContrast]:
    if data.compared:
        line = data.compared.lines[0]
        theirs, ours = (code(name) for name in data.compared.names)
        yield PairedContrast(
            Markdown(f"traces of {ours}"), Markdown(f"traces of {theirs}"),
            line["method"] or line["checkpoint"], data.compared.seeds if line["method"] else 1,
            p=line["p"], name=_minus(data.compared.names[::-1]), answers=True,
        )  # fmt: skip


def _rewards(data: ReportData) -> Iterator[PairedContrast]:
    if data.rewards.difference:
        yield PairedContrast(
            Markdown("the teacher after RL"), Markdown("the teacher before it"),
            data.rewards.difference, len(data.seeds), name=_minus(("after RL", "before")),
        )  # fmt: skip


# ---------------------------------------------------------------- how certain, what it cost
def _certain(data: ReportData, primary: PairedContrast | None) -> Iterator[Markdown]:
    if primary:
        asked = f"{primary.difference.questions} were asked"
        if primary.seeds > 1:
            few = "; with so few it is a little too narrow" if primary.seeds < FEW_SEEDS else ""
            yield Markdown(
                f"The 95% interval holds for other questions ({asked}) and for other training "
                f"seeds ({primary.seeds} were trained{few})."
            )
        else:
            yield Markdown(
                f"The 95% interval holds for other questions ({asked}), not for other training "
                "seeds: nothing here says how much another seed would change the result "
                "(`--set 'seeds=[0,1,2]'` trains three)."
            )
        if primary.p is not None:
            yield Markdown(f"p = {p_value(primary.p)}.".replace("= <", "<"))
        low, high = primary.difference.low, primary.difference.high
        if low <= 0 <= high and primary.detectable:
            yield Markdown(
                f"A true difference of {percent(primary.detectable)} points would be found in 80% "
                "of studies like this one."
            )
    if data.alarms:
        were = "alarm was" if len(data.alarms) == 1 else "alarms were"
        yield Markdown(f"{len(data.alarms)} {were} raised: read them first.")


def _cost(data: ReportData) -> Markdown:
    made = [part.manifest for part in data.nodes]
    gpu, longest = sum(one.gpu_seconds for one in made), max(made, key=lambda one: one.seconds)
    on_gpus = f"{duration(gpu)} of it on GPUs" if gpu else "none of it on a GPU"
    return Markdown(
        f"{duration(sum(one.seconds for one in made))} of computing, {on_gpus}; "
        f"{len(made)} artifacts, {decimal(sum(one.bytes for one in made))}. "
        f"The longest: {code(longest.label)}, {duration(longest.seconds)}."
    )


def _otherwise(data: ReportData) -> Markdown:
    lines: list[Row] = data.rewards.lines
    if not lines:
        return Markdown("Nothing yet: no two models were tested on the same questions.")
    best = max(lines, key=lambda line: line["reward"].value)
    others = f", the highest of {len(lines)} sets" if len(lines) > 1 else ""
    return Markdown(
        f"Mean reward of {cell(best['name'])}: **{number(best['reward'])}**{others}; no student "
        "was tested."
    )
