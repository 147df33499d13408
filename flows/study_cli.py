"""`rlt study`: claims with their seeds, frozen before those run, and verified from tables alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.display import table_console
from flows.options import DEFAULT_STORE, StoreOption, open_store, store_place
from flows.request import Request, name_nodes
from flows.run_cli import require_writable, supervise
from rlt_core.errors import UserError
from rlt_core.printable import printable
from rlt_core.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlt_core.study.verdicts import Verdict

app = typer.Typer(help="Claims as code: freeze them before their seeds run, run, verify.")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A study (TOML).")]


@app.command()
def freeze(file: FileArgument, store: StoreOption = DEFAULT_STORE) -> None:
    """Fix a study's file, config and graph beside it, before its seeds run."""
    from rlt_core.study.claims import load_study
    from rlt_core.study.freeze import freeze as freeze_
    from rlt_core.study.freeze import frozen_path
    from rlt_core.study.show import pilot_note

    frozen, new = freeze_(file, open_store(store))
    place = escape(str(frozen_path(file)))
    said = "frozen" if new else f"was frozen on {frozen.frozen_at:%Y-%m-%d}, and is unchanged"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{escape(frozen.study)}: {said}: {len(frozen.nodes)} nodes, in {place}")
    console.print(f"study   sha256 {frozen.study_sha256}")
    console.print(f"config  sha256 {frozen.config_sha256}")
    if note := pilot_note(load_study(file)):
        console.print(note)
    if new:
        console.print(f"commit both files, then: rlt study run {escape(str(file))}")


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
    require_place(place, frozen_path(file))
    open_store(store)
    for experiment in resolved.study.experiments:
        request = Request(
            target=experiment,
            profile=resolved.study.profile,
            overrides=resolved.study.overrides,
            store=store_place(store),
        )
        if status := _compute(request):
            raise typer.Exit(status)
    verdicts = write_bundle(resolved, Store(store_place(store)), place)
    _show(verdicts)
    if note := pilot_note(resolved.study):
        print(note)
    print(f"bundle: {place}  (check it anywhere: rlt study verify {place})")


def _compute(request: Request) -> int:
    """What the store lacks of one experiment; returns the exit status."""
    planned = request.plan()
    store = Store(request.store)
    if all(item.hit for item in planned):
        name_nodes(store, request.profile, [item.node for item in planned])
        return 0
    require_writable(store)
    request.require_room_here(planned)
    misses = sum(not item.hit for item in planned)
    print(f"{request.target}: {len(planned)} nodes, {misses} to compute")
    status = supervise(request, quiet=False)
    if status == 130:
        print("stopped; the same command goes on from here", file=sys.stderr)
    return status


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `run` wrote.")],
) -> None:
    """Recompute every verdict from a bundle's tables; no store, no model. Exit status 1 if
    anything differs."""
    from rlt_core.study.bundle import verify as verify_

    if not bundle.is_dir():
        raise UserError(f"{bundle}: there is no such folder")
    found = verify_(bundle)
    if found.verdicts:
        _show(found.verdicts)
    for problem in found.problems:
        print(printable(problem))
    frozen = found.freeze
    print(
        f"{found.study.name}: frozen {frozen.frozen_at:%Y-%m-%d %H:%M} UTC at commit "
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

    styles = {"holds": "green", "refuted": "red", "undecided": "yellow"}
    table = Table(header_style="bold", pad_edge=False, box=None)
    for column in COLUMNS:
        table.add_column(
            escape(column),
            overflow="fold",
            max_width=40 if column == "statement" else None,
            justify="right" if column in ("p", "adjusted p", "detectable") else "left",
        )
    for verdict in verdicts:
        row = dict(zip(COLUMNS, map(_plain, cells(verdict)), strict=True))
        row["verdict"] = f"[{styles[verdict.verdict]}]{verdict.verdict}[/]"
        table.add_row(*row.values())
    table_console().print(table)


def _plain(text: str) -> str:
    return escape(printable(text))
