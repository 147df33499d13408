"""`rlt reward`: rewards of committed scores, recomputed and explained; no model."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from flows.cli.options import DEFAULT_STORE, ExistingStore, JsonOption, check_output
from flows.cli.progress import progress_bar
from flows.cli.reward_score import score
from flows.cli.sql import skip_pandas
from flows.cli.terminal import Console, new_table, print, print_json, print_whole, table_console
from rlt_core.config import KLEstimator, Reduction
from rlt_core.config.reward import off_policy_note
from rlt_core.errors import UserError

if TYPE_CHECKING:
    from rlt_core.explain import Explained
    from rlt_core.store import Manifest, Store

app = typer.Typer(
    no_args_is_help=True,
    help="Rewards of explanations: recomputed from stored log-probs, explained, or computed.",
)
app.command()(score)

LIKELIHOODS = (
    (math.log(0.5), "≥ 0.5", ""),
    (math.log(0.1), "≥ 0.1", "black on bright_cyan"),
    (math.log(0.01), "≥ 0.01", "black on bright_yellow"),
    (-math.inf, "< 0.01", "white on blue"),
)
"""Least natural log-prob, name and style of the colours of tokens: told apart by lightness, too."""
EFFECTS = ("mean_before", "mean_after", "pearson", "spearman")


# ---------------------------------------------------------------- replay
@app.command()
def replay(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Keys or names of scores; by default the latest of each label and seed.",
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the worst token.")] = None,
    kl_weight: Annotated[float | None, typer.Option("--lambda", help="Weight of r_KL.")] = None,
    kl: Annotated[
        KLEstimator | None,
        typer.Option(help="KL estimator; full needs scores with reward.kl=full."),
    ] = None,
    reduction: Annotated[
        Reduction | None, typer.Option(help="Reduction in place of the mean, in r_SS and r_KL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Parquet file for the replayed traces.")
    ] = None,
    store: ExistingStore = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Recompute rewards and ranks of committed scores.

    Options that are not given keep the artifact's own values.
    """
    if output is not None:
        check_output(output)
    skip_pandas()
    from rlt_core.reward.replay import changed, chosen, spec_of

    manifests = chosen(store, runs or [])
    given = {
        "alpha": alpha, "kl_weight": kl_weight, "kl": kl,
        "solution_reduction": reduction, "think_reduction": reduction,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    specs = [changed(spec_of(manifest), changes) for manifest in manifests]
    for manifest, spec in zip(manifests, specs, strict=True):
        if reason := manifest.config.get("off_policy"):
            print(f"{manifest.label}: {off_policy_note(spec.kl, reason)}", file=sys.stderr)
    by_run = _replayed(store, manifests, changes, output)
    nothing = {"traces": 0, "questions": 0}
    entries = [
        {"label": one.label, "seed": one.seed, "run": one.ref.key}
        | by_run.get(one.ref.key, nothing) | {"reward": spec.model_dump()}
        for one, spec in zip(manifests, specs, strict=True)
    ]  # fmt: skip
    if as_json:
        print_json(entries)
        return
    named = {"alpha": alpha, "lambda": kl_weight, "kl": kl, "reduction": reduction}
    _show_replay(manifests, entries, named)
    if output is not None:
        print(f"written: {output}")


def _replayed(
    store: Store, manifests: list[Manifest], changes: dict[str, Any], output: Path | None
) -> dict[str, dict[str, Any]]:
    """Return the summary of each artifact, and write all traces."""
    from flows.cli.sql_output import write
    from rlt_core.reward.replay import replayed, summaries

    with (
        progress_bar("replay") as report,
        replayed(store, manifests, changes, report) as connection,
    ):
        if output is not None:
            every = connection.sql("from replayed order by run, question_id, sample, teacher")
            write(every, "parquet", output)
        return summaries(connection)


def _show_replay(
    manifests: list[Manifest], entries: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    numbers = ("traces", "questions", "before", "after", "Pearson", "Spearman", "best changed")
    table = new_table("scores", "key", *numbers, right=numbers)
    for manifest, row in zip(manifests, entries, strict=True):
        share = row.get("best_changed")
        table.add_row(
            manifest.name, manifest.ref.key, f"{row['traces']:,}",
            f"{row['questions']:,}", *(_number(row.get(name)) for name in EFFECTS),
            "·" if share is None else f"{share:.1%}",
        )  # fmt: skip
    print_whole(table_console(), table)
    what = ", ".join(f"{name} {value}" for name, value in changes.items() if value is not None)
    print(f"mean reward before and after; {what or 'nothing'} changed")


def _number(value: float | None) -> str:
    return "·" if value is None else f"{value:.4g}"


# ---------------------------------------------------------------- explain
@app.command("explain")
def explain_(
    trace_id: Annotated[
        str | None,
        typer.Argument(
            metavar="TRACE_ID", help="Column trace_id of `scores`; by default the best."
        ),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Show the trace of highest reward.")] = False,
    worst: Annotated[
        bool, typer.Option("--worst", help="Show the trace of lowest reward.")
    ] = False,
    question: Annotated[
        str | None,
        typer.Option(metavar="QUESTION_ID", help="The question whose best or worst trace to show."),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="Key, beginning or name of the scores; by default the newest with the trace."
        ),
    ] = None,
    store: ExistingStore = DEFAULT_STORE,
) -> None:
    """Show what made one trace's reward: the texts, coloured by the student's log-probs, and the
    parts. `rlt traces` shows every token's numbers, and the question's other traces."""
    skip_pandas()
    from rlt_core.explain import explain

    if (trace_id is not None) + best + worst > 1 or (trace_id and question):
        raise UserError("give one of TRACE_ID, --best and --worst, and --question without TRACE_ID")
    found = explain(store, trace_id, run, worst, question)
    console = table_console()
    row, manifest = found.row, found.manifest
    where = f"  {manifest.name}  {manifest.ref.key}"
    console.print(Text.assemble((row["trace_id"], "bold"), where))
    names = ("question_id", "teacher", "student", "closed", "think_tokens", "solution_tokens")
    known = (f"{name} {row[name]}" for name in names if row[name] is not None)
    console.print("  ".join(known), style="dim")
    _show_texts(console, found)
    _show_parts(console, found)


def _show_texts(console: Console, found: Explained) -> None:
    """Show question, solution and explanation; the colour of a token is its probability."""
    if found.question is not None:
        console.print(Text.assemble("\n", ("question", "bold"), f"\n{found.question}"))
    for heading, tokens in (("solution", found.solution), ("explanation", found.explanation)):
        if tokens:
            coloured = (
                (one.text, next(style for least, _, style in LIKELIHOODS if one.student >= least))
                for one in tokens
            )
            console.print(Text.assemble("\n", (heading, "bold"), "\n", *coloured))
    if found.explanation:
        legend = [(f" {name} ", style) for _, name, style in LIKELIHOODS]
        console.print(Text.assemble("\n", ("the student's probability ", "dim"), *legend, "\n"))


def _show_parts(console: Console, found: Explained) -> None:
    """Show the summands of the reward, or why there are none."""
    reward = found.row["reward"]
    if reward is None:
        console.print(f"no reward: {found.row['status']}")
    elif not found.parts:
        console.print(f"reward {_number(reward)}, imported: there are no log-probs")
    else:
        table = new_table("part", "value", "times", "adds", right=("value", "times", "adds"))
        for part in found.parts:
            added = f"{part.contribution:+.4f}"
            table.add_row(part.name, f"{part.value:.4f}", f"{part.coefficient:g}", added)
        table.add_row("reward", "", "", f"{reward:+.4f}", style="bold")
        console.print(table)
