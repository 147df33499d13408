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

from flows.options import DEFAULT_STORE, JsonOption, StoreOption, open_store
from flows.sql_cli import _NoPandas
from rlt_core.config import KLEstimator, Reduction
from rlt_core.errors import UserError

if TYPE_CHECKING:
    from rlt_core.replay import Changes, Summary
    from rlt_core.store import Manifest

app = typer.Typer(
    help="The reward of explanations: recompute it from stored log-probs, see what made it."
)

UNLIMITED = 10_000
"""Characters a line where no terminal bounds it."""


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else UNLIMITED, highlight=False)


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
    _check_output(output)
    sys.meta_path.insert(0, _NoPandas())
    from flows.sql_output import write
    from rlt_core.replay import Changes, chosen, replayed, summaries

    opened = open_store(store)
    manifests = chosen(opened, runs or [])
    changes = Changes(alpha, kl_weight, kl, reduction)
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
        _console().print(f"written: {escape(str(output))}")


def _check_output(output: Path | None) -> None:
    """Raises UserError before the work for a file that cannot be written."""
    if output is not None and output.suffix != ".parquet":
        raise UserError(f"--output {output}: Parquet is written; end its name in .parquet")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")


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
    from rlt_core.replay import own_spec

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
        title = manifest.label if manifest.seed is None else f"{manifest.label}@{manifest.seed}"
        table.add_row(
            escape(title), manifest.ref.key, f"{one.traces:,}", f"{one.questions:,}",
            _number(one.mean_before), _number(one.mean_after), _number(one.pearson),
            _number(one.spearman), "·" if one.best_changed is None else f"{one.best_changed:.1%}",
        )  # fmt: skip
    given = [
        f"{'lambda' if name == 'kl_weight' else name} {value}"
        for name, value in dataclasses.asdict(changes).items()
        if value is not None
    ]
    console = _console()
    console.print(table)
    console.print(
        f"mean reward before and after; {', '.join(given) or 'nothing'} changed", style="dim"
    )


def _number(value: float | None) -> str:
    return "·" if value is None else f"{value:.4g}"
