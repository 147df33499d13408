"""The text of a report, section by section, as Markdown: what a run did not do is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from rich.filesize import decimal

from rlt_core.prompts.format import label_of
from rlt_core.report import tables
from rlt_core.report.figures import Figure
from rlt_core.report.gather import ReportData
from rlt_core.report.inputs import Part, Row
from rlt_core.report.ranks import REWARD, RankAblation
from rlt_core.report.texts import (
    NOTHING,
    Markdown,
    Number,
    cell,
    code,
    duration,
    joined,
    number,
    percent,
    points,
    table,
)
from rlt_core.report.trace_sets import NOTE
from rlt_core.report.training import WINDOW_STEPS
from rlt_core.store import Manifest, Ref

Block = str | tuple[str, str] | Figure
"""Markdown; two pieces of it that a wide page shows side by side; or a figure."""
Figures = Mapping[str, Figure]
LAST_STEPS = {
    "KL to reference": "reference_kl",
    "gradient norm": "grad_norm",
    "groups without spread": "zero_std_groups",
    "unclosed": "unclosed",
    "tokens/s": "tokens_per_s",
}
"""Column of the training table -> column of `train_steps`."""
TOY = "> This is a positive control of the pipeline at toy scale, not evidence for the paper."


def title(data: ReportData) -> str:
    """Title of the page."""
    return f"{data.title}, profile {data.profile}"


def page(data: ReportData, figures: Figures) -> list[Block]:
    """The whole report."""

    def figure(*files: str) -> Iterator[Figure]:
        yield from (figures[file] for file in files if file in figures)

    blocks: list[Block] = [f"# {cell(title(data))}"]
    if data.is_toy:
        blocks.append(TOY)
    blocks.append(_about(data))
    if data.alarms:
        blocks += ["## Alarms", "\n".join(f"- {cell(alarm)}" for alarm in data.alarms)]
    if data.experiment:
        overview, *details = tables.experiment_section(data.experiment)
        blocks += [overview, *figure("scores.png"), *details]
    elif data.totals:
        overview, *details = _scores(data)
        blocks += [overview, *figure("scores.png"), *details]
    if data.overlaps:
        blocks.append(tables.overlap_section(data.overlaps))
    if data.compared:
        blocks += tables.compared_section(data.compared)
    if data.rewards.lines:
        blocks += _rewards(data)
    if data.traces:
        blocks.append(_traces(data))
    if data.curves:
        blocks += [_training(data), *figure("reward.png", "loss.png")]
    if data.ranks:
        blocks += [*_ranks(data.ranks), *figure("ranks.png")]
        blocks += [*tables.rank_sets_section(data.rank_sets), *figure("rank_sets.png")]
    if data.examples:
        blocks += ["## Texts\n\nThe first question by id, not picked.", *data.examples]
    return [block for block in (*blocks, _data(data), _cost(data), _lineage(data)) if block]


def _about(data: ReportData) -> str:
    seeds = ", ".join(map(str, data.seeds))
    trained = f"training seeds {seeds}" if data.seeds else "no training seed"
    commits = f", code at {', '.join(map(cell, data.git_commits))}" if data.git_commits else ""
    return (
        f"{len(data.nodes)} artifacts, {trained}{commits}. Report {code(data.key)}. "
        "Every interval is 95%."
    )


# ---------------------------------------------------------------- results
def _scores(data: ReportData) -> Iterator[str]:
    several = bool(data.single_seeds)
    about = (
        f"Percent correct{', over all seeds' if several else ''}. Intervals are clustered by "
        f"question{' and hold for other seeds too' if several else ''}; differences against the "
        "base model are paired on the same questions. Ungraded completions are in no score; an "
        "answer on which the grader hung or died counts as wrong."
    )

    def shown(row: Row) -> Row:
        return {
            "task": code(row["task"]), "model": code(row["model"]),
            "seed": NOTHING if row["seed"] is None else row["seed"], "metric": row["metric"],
            "score": percent(row["value"]), "against base": points(row["difference"]),
            "questions": row["questions"], "completions a question": row["samples"],
            "ungraded": row["ungraded"], "grader failed": row["grader_failed"],
        }  # fmt: skip

    yield f"## Scores\n\n{about}\n\n{table([shown(row) for row in data.totals])}"
    if data.pairs:
        rows = [
            {name: code(pair[name]) for name in ("task", "model", "against")}
            | {"difference": points(pair["difference"])}
            for pair in data.pairs
        ]
        about = "In percentage points."
        yield f"### Model against model, on the same questions\n\n{about}\n\n{table(rows)}"
    if several:
        yield f"### By seed\n\n{table([shown(row) for row in data.single_seeds])}"


def _rewards(data: ReportData) -> Iterator[str]:
    rows = [
        {
            "traces of": line["name"], "reward": number(line["reward"]),
            "by seed": joined(map(number, line["by_seed"].values())),
            "r_SS": number(line["r_ss"]), "r_KL": number(line["r_kl"]),
            "unclosed": Number(f"{percent(line['unclosed'])}%"),
            "tokens": number(line["think_tokens"]), "traces": line["traces"],
        }
        for line in data.rewards.lines
    ]  # fmt: skip
    about = "Mean reward of scored traces, clustered by question."
    yield f"## The teacher's reward\n\n{about}\n\n{table(rows)}"
    if data.rewards.difference:
        difference = number(data.rewards.difference)
        yield f"After RL minus before, on the same held-out questions: **{difference}**."


def _traces(data: ReportData) -> str:
    rows = [
        {
            "traces": code(row["name"]), "number": row["traces"], "copied": percent(row["copied"]),
            "compression": number(row["compression"]), "doubt": number(row["doubt"]),
            "cut": percent(row["clipped"]), "tokens": number(row["think_tokens"]),
            "log-prob": number(row["think_mean"]), "rank-surprisal": number(row["rank_surprisal"]),
        }
        for row in data.traces
    ]  # fmt: skip
    return f"## The traces\n\n{NOTE}\n\n{table(rows)}"


def _training(data: ReportData) -> str:
    rows = [
        {
            "run": code(curve.name), "quantity": curve.quantity, "steps": curve.steps[-1],
            f"first {WINDOW_STEPS}": number(curve.first),
            f"last {WINDOW_STEPS}": number(curve.last),
            **{name: number(curve.last_row[column]) for name, column in LAST_STEPS.items()},
            "time": duration(curve.seconds),
        }
        for curve in data.curves
    ]  # fmt: skip
    about = f"Means of the first and of the last {WINDOW_STEPS} steps."
    return f"## Training\n\n{about}\n\n{table(rows)}"


def _ranks(ranks: RankAblation) -> Iterator[str]:
    by = "Reward rank" if ranks.ranked_by == REWARD else f"Rank by {tables.set_name(ranks)}"
    rows = [
        {
            "rank": line.rank, "score": percent(line), "mean reward": number(line.mean_reward),
            "traces": line.traces, "by seed": joined(map(percent, line.by_seed.values())),
        }
        for line in ranks.lines
    ]  # fmt: skip
    yield (
        f"## {cell(by)} and student score\n\nOne student per rank, trained on the traces of that "
        f"rank (1 is best) by the teacher before RL; {code(ranks.task)}, percent correct."
    )
    yield table(rows)
    if ranks.undefined_resamples:
        yield (
            f"In {percent(ranks.undefined_resamples)}% of the resamples all students had the same "
            "score; the intervals of the correlations leave these out."
        )


# ---------------------------------------------------------------- where it comes from
def _data(data: ReportData) -> str:
    def counts(part: Part, table: str, column: str) -> str:
        found = Counter(row[column] for row in part.rows(table, column))
        return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"

    rows = [
        {
            "data set": code(part.name), "questions": counts(part, "questions", "split"),
            "dropped": counts(part, "dropped", "reason"),
        }
        for part in data.nodes
        if part.stage == "dataset-prep"
    ]  # fmt: skip
    return f"## Data\n\n{table(rows)}" if rows else ""


def _cost(data: ReportData) -> str:
    def row(stage: str, manifests: list[Manifest]) -> dict[str, object]:
        seconds = [one.seconds for one in manifests]
        return {
            "stage": stage, "artifacts": len(manifests), "total time": duration(sum(seconds)),
            "longest": duration(max(seconds)),
            "GPU time": duration(sum(one.gpu_seconds for one in manifests)),
            "size": Number(decimal(sum(one.bytes for one in manifests))),
        }  # fmt: skip

    stages: dict[str, list[Manifest]] = defaultdict(list)
    for part in data.nodes:
        stages[part.stage].append(part.manifest)
    stages["all"] = [part.manifest for part in data.nodes]
    about = "What it took to compute every artifact once, in this run or an earlier one."
    return f"## Cost\n\n{about}\n\n{table([row(*each) for each in stages.items()])}"


def _lineage(data: ReportData) -> str:
    def inputs(named: Mapping[str, Ref]) -> Markdown:
        return Markdown(", ".join(f"{cell(name)} {code(ref.key)}" for name, ref in named.items()))

    rows = [
        {
            "artifact": code(part.name), "key": code(made.ref.key),
            "made from": inputs(made.inputs), "prompt format": label_of(made.config) or NOTHING,
            "device": made.device, "time": duration(made.seconds),
        }
        for part in data.nodes
        for made in [part.manifest]
    ]  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in data.packages.items())
    return f"## Lineage\n\n{table(rows)}\n\nComputed with {cell(versions)}."
