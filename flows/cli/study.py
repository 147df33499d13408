"""`rlt study`: claims with their seeds, frozen before those run, and verified from tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import DEFAULT_STORE, StoreOption, open_store, store_place
from flows.cli.progress import table_console
from flows.cli.run import compute
from flows.request import Request
from rlt_core.errors import UserError
from rlt_core.printable import printable
from rlt_core.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlt_core.study.verdicts import Verdict

app = typer.Typer(help="Claims as code: freeze them before their seeds run, run, verify.")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A study (TOML).")]
STYLES = {"holds": "green", "refuted": "red", "undecided": "yellow"}
NUMBERS = ("p", "adjusted p", "detectable")


@app.command()
def freeze(file: FileArgument, store: StoreOption = DEFAULT_STORE) -> None:
    """Fix a study's file, config and graph beside it, before its seeds run."""
    from rlt_core.study.claims import load_study
    from rlt_core.study.freeze import freeze, frozen_path
    from rlt_core.study.show import pilot_note

    frozen, new = freeze(file, open_store(store))
    state = "frozen" if new else f"was frozen on {frozen.frozen_at:%Y-%m-%d}, and is unchanged"
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{frozen.study}: {state}: {len(frozen.nodes)} nodes, in {frozen_path(file)}")
    console.print(f"study   sha256 {frozen.study_sha256}")
    console.print(f"config  sha256 {frozen.config_sha256}")
    if note := pilot_note(load_study(file)):
        console.print(note)
    if new:
        console.print(f"commit both files, then: rlt study run {file}")


@app.command()
def run(
    file: FileArgument,
    store: StoreOption = DEFAULT_STORE,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Folder for all that the verdicts rest on.  [default: FILE's name, .bundle]"
        ),
    ] = None,
) -> None:
    """Compute what a frozen study needs, judge, and write its bundle. Ctrl-C once: checkpoint and
    stop; the same command goes on."""
    from rlt_core.study.bundle import require_place, write_bundle
    from rlt_core.study.freeze import frozen_path, require_frozen
    from rlt_core.study.show import pilot_note

    place = bundle or file.with_suffix(".bundle")
    resolved, _ = require_frozen(file)
    study = resolved.study
    require_place(place, frozen_path(file))
    open_store(store)
    for experiment in study.experiments:
        request = Request(
            target=experiment,
            profile=study.profile,
            overrides=study.overrides,
            store=store_place(store),
        )
        planned = request.plan()
        if misses := sum(not item.hit for item in planned):
            print(f"{experiment}: {len(planned)} nodes, {misses} to compute")
        if status := compute(request, planned, quiet=False):
            raise typer.Exit(status)
    _show(write_bundle(resolved, Store(store_place(store)), place))
    if note := pilot_note(study):
        print(note)
    print(f"bundle: {place}  (check it anywhere: rlt study verify {place})")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `run` wrote.")],
) -> None:
    """Recompute every verdict from a bundle's tables; no store, no model. Exit status 1 if
    anything differs."""
    from rlt_core.study.bundle import verify

    if not bundle.is_dir():
        raise UserError(f"{bundle}: there is no such folder")
    found = verify(bundle)
    if found.verdicts:
        _show(found.verdicts)
    for problem in found.problems:
        print(printable(problem))
    frozen = found.freeze
    print(
        f"{frozen.study}: frozen {frozen.frozen_at:%Y-%m-%d %H:%M} UTC at commit "
        f"{frozen.git_commit or 'unknown'}, study sha256 {frozen.study_sha256}"
    )
    print(found.rules)
    if found.problems:
        only_rules = found.verdicts and not found.same_rules
        differ = "differ by these rules" if only_rules else "are not so"
        print(f"{len(found.problems)} of the bundle's statements {differ}")
        raise typer.Exit(1)
    print(f"{len(found.verdicts)} verdicts recomputed from the tables: all agree")


def _show(verdicts: Sequence[Verdict]) -> None:
    from rlt_core.study.show import COLUMNS, cells

    table = Table(header_style="bold", pad_edge=False, box=None)
    for column in COLUMNS:
        table.add_column(
            escape(column),
            overflow="fold",
            max_width=40 if column == "statement" else None,
            justify="right" if column in NUMBERS else "left",
        )
    for verdict in verdicts:
        row = {
            name: escape(printable(cell))
            for name, cell in zip(COLUMNS, cells(verdict), strict=True)
        }
        row["verdict"] = f"[{STYLES[verdict.verdict]}]{row['verdict']}[/]"
        table.add_row(*row.values())
    table_console().print(table)
