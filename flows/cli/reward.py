"""`rlt reward`: rewards of committed scores, recomputed and explained; no model."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flows.cli.options import DEFAULT_STORE, JsonOption, StoreOption, check_parquet, open_store
from flows.cli.progress import print_whole, table_console
from flows.cli.reward_score import score
from flows.cli.sql import NoPandas
from rlt_core.config import KLEstimator, Reduction
from rlt_core.config.reward import off_policy_note
from rlt_core.printable import printable

if TYPE_CHECKING:
    from rlt_core.explain import Explained, Token
    from rlt_core.reward.replay import Changes, Summary
    from rlt_core.store import Manifest

app = typer.Typer(
    help="The reward of explanations: recompute it from stored log-probs, see what made it."
)

app.command()(score)

SHOWN_RIVALS = 16
"""Completions of the same question that `explain` shows."""
MEASURES = (
    "r_ss", "r_kl", "think_mean", "rank_surprisal", "copied", "compression", "doubt", "clipped",
)  # fmt: skip
"""Columns of `scores` that rank traces otherwise, and that guards watch."""


# ---------------------------------------------------------------- replay
@app.command()
def replay(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Keys, beginnings or names of scores; none: the latest of each label and seed.",
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the worst token.")] = None,
    kl_weight: Annotated[float | None, typer.Option("--lambda", help="Weight of r_KL.")] = None,
    kl: Annotated[
        KLEstimator | None, typer.Option(help="KL at a token; full: where it was scored so.")
    ] = None,
    reduction: Annotated[
        Reduction | None, typer.Option(help="In place of the mean, in r_SS and r_KL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write every trace to this Parquet file.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Recompute rewards and ranks of committed scores; what is not given stays as it was."""
    if output is not None:
        check_parquet(output)
    sys.meta_path.insert(0, NoPandas())
    from flows.cli.sql_output import write
    from rlt_core.reward.replay import Changes, chosen, own_spec, replayed, summaries

    opened = open_store(store)
    manifests = chosen(opened, runs or [])
    changes = Changes(alpha, kl_weight, kl, reduction)
    for manifest in manifests:
        if reason := manifest.config.get("off_policy"):
            note = off_policy_note(changes.applied(own_spec(manifest)).kl, reason)
            print(f"{manifest.label}: {note}", file=sys.stderr)
    with (
        _progress(sum(manifest.rows for manifest in manifests)) as advance,
        replayed(opened, manifests, changes, advance) as connection,
    ):
        found = summaries(connection, manifests)
        if output is not None:
            every = connection.sql("from replayed order by run, question_id, sample, teacher")
            write(every, "parquet", output)
    if as_json:
        pairs = zip(manifests, found, strict=True)
        print(json.dumps([_entry(*pair, changes) for pair in pairs], indent=1))
        return
    _show_replay(manifests, changes, found)
    if output is not None:
        table_console().print(f"written: {escape(str(output))}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A line on the terminal while traces are read; hears how many more."""
    console = Console(stderr=True)
    columns = (
        TextColumn("replay"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("traces"),
        TimeRemainingColumn(),
    )  # fmt: skip
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bars:
        task = bars.add_task("", total=total)
        yield lambda more: bars.advance(task, more)


def _entry(manifest: Manifest, summary: Summary, changes: Changes) -> dict[str, Any]:
    from rlt_core.reward.replay import own_spec

    return {
        "label": manifest.label,
        "seed": manifest.seed,
        **dataclasses.asdict(summary),
        "reward": changes.applied(own_spec(manifest)).model_dump(),
    }


def _show_replay(manifests: list[Manifest], changes: Changes, found: list[Summary]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("scores")
    table.add_column("key", no_wrap=True)
    for column in ("traces", "questions", "before", "after", "Pearson", "Spearman", "best changed"):
        table.add_column(column, justify="right")
    for manifest, one in zip(manifests, found, strict=True):
        table.add_row(
            escape(_title(manifest)), manifest.ref.key, f"{one.traces:,}", f"{one.questions:,}",
            _number(one.mean_before), _number(one.mean_after), _number(one.pearson),
            _number(one.spearman), "·" if one.best_changed is None else f"{one.best_changed:.1%}",
        )  # fmt: skip
    given = [
        f"{'lambda' if name == 'kl_weight' else name} {value}"
        for name, value in dataclasses.asdict(changes).items()
        if value is not None
    ]
    console = table_console()
    print_whole(console, table)
    console.print(
        f"mean reward before and after; {', '.join(given) or 'nothing'} changed", style="dim"
    )


def _number(value: float | None) -> str:
    return "·" if value is None else f"{value:.4g}"


# ---------------------------------------------------------------- explain
@app.command("explain")
def explain_(
    trace_id: Annotated[str, typer.Argument(metavar="TRACE_ID", help="As in `scores`.")],
    run: Annotated[
        str | None,
        typer.Option(help="Key, beginning or name of the scores; else the newest with the trace."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Show what made one trace's reward: parts, worst tokens, the question's other traces."""
    sys.meta_path.insert(0, NoPandas())
    from rlt_core.explain import explain

    found = explain(open_store(store), trace_id, run)
    row, console = found.row, table_console()
    _show_head(console, found)
    if found.parts:
        console.print(_parts_table(found))
    elif row["reward"] is None:
        console.print(f"no reward: {row['status']}")
    else:
        console.print(f"reward {_number(row['reward'])}, imported: there are no log-probs")
    if found.worst_solution is not None:
        console.print("\nworst token of the solution", style="bold")
        console.print(_tokens_table([found.worst_solution]))
    for title, tokens in (
        ("most surprising tokens of the explanation: largest k", found.surprising),
        ("and least likely to the student", found.unlikely),
    ):
        if tokens:
            console.print(f"\n{title}", style="bold")
            console.print(_tokens_table(tokens))
    measured = [f"{name} {_number(row[name])}" for name in MEASURES if row[name] is not None]
    if measured:
        console.print(f"\n[bold]measures[/]  {', '.join(measured)}")
    console.print(_group_table(found))


def _show_head(console: Console, found: Explained) -> None:
    row = found.row
    console.print(
        f"[bold]{escape(row['trace_id'])}[/]  {escape(_title(found.manifest))}  "
        f"{found.manifest.ref.key}"
    )
    for name in ("question_id", "teacher", "student", "closed", "think_tokens", "solution_tokens"):
        if row[name] is not None:
            console.print(f"{name} {escape(str(row[name]))}", end="  ", style="dim")
    console.print()
    if found.elsewhere:
        others = ", ".join(f"{_title(one)} ({one.ref.key})" for one in found.elsewhere)
        console.print(f"also scored in {escape(others)}: take --run KEY for these", style="dim")


def _parts_table(found: Explained) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("part")
    for column in ("value", "times", "adds"):
        table.add_column(column, justify="right")
    for part in found.parts:
        table.add_row(
            part.name, f"{part.value:.4f}", f"{part.coefficient:g}", f"{part.contribution:+.4f}"
        )
    table.add_row("[bold]reward", "", "", f"[bold]{found.row['reward']:+.4f}")
    return table


def _tokens_table(tokens: list[Token]) -> Table:
    """Positions, log-probs, k where there is one, and the token among its neighbours."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    explanation = tokens[0].kl is not None
    table.add_column("token", justify="right")
    for column in ("log p student", *(("log p teacher", "k") if explanation else ())):
        table.add_column(column, justify="right")
    table.add_column("text")
    for token in tokens:
        numbers = [token.student, token.teacher, token.kl]
        text = Text.assemble(
            _plain(token.before), (f"[{_plain(token.text)}]", "bold reverse"), _plain(token.after)
        )
        table.add_row(
            str(token.position),
            *(f"{number:.3f}" for number in numbers if number is not None),
            text,
        )
    return table


def _plain(text: str) -> str:
    return printable(text.replace("\n", "⏎").replace("\t", "⇥"))


def _group_table(found: Explained) -> Table:
    """The question's traces by rank: the best, and this one."""
    own, group = found.row["trace_id"], found.group
    left_out = max(0, len(group) - SHOWN_RIVALS)
    table = Table(
        box=None, header_style="bold", pad_edge=False, title_justify="left",
        title=f"\ntraces of the question, by rank: {len(group)}",
        caption=f"{left_out} more" if left_out else None,
    )  # fmt: skip
    for column in ("rank", "trace", "reward", "tokens"):
        table.add_column(column, justify="left" if column == "trace" else "right")
    for place, row in enumerate(group):
        if place < SHOWN_RIVALS or row["trace_id"] == own:
            table.add_row(
                "·" if row["rank"] is None else str(row["rank"]),
                escape(row["trace_id"]),
                _number(row["reward"]),
                "·" if row["think_tokens"] is None else str(row["think_tokens"]),
                style="bold" if row["trace_id"] == own else "",
            )
    return table


def _title(manifest: Manifest) -> str:
    return manifest.label if manifest.seed is None else f"{manifest.label}@{manifest.seed}"
