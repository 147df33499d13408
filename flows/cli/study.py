"""`rlt study`: freeze claims before their seeds run, judge them, verify verdicts from tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flows.cli.options import DEFAULT_STORE, StoreOption, new_plan, open_store
from flows.cli.run import compute
from flows.cli.terminal import Console, new_table, print, table_console
from rlt_core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlt_core.study.verdicts import Verdict

app = typer.Typer(
    no_args_is_help=True, help="Claims as code: freeze them before their seeds run, run, verify."
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A study (TOML).")]
STYLES = {"holds": "green", "refuted": "red", "undecided": "yellow"}


@app.command()
def freeze(file: FileArgument, store: StoreOption = DEFAULT_STORE) -> None:
    """Fix a study's file, config and graph beside it, before its seeds run."""
    from rlt_core.study.claims import load_study
    from rlt_core.study.freeze import freeze, frozen_path
    from rlt_core.study.show import pilot_note

    frozen, new = freeze(file, open_store(store))
    state = "frozen" if new else f"was frozen on {frozen.frozen_at:%Y-%m-%d} and is unchanged"
    console = Console(soft_wrap=True)
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
            help="Folder for the verdicts and their evidence.", show_default="FILE.bundle"
        ),
    ] = None,
) -> None:
    """Compute the nodes of a frozen study, judge its claims and write the bundle.

    Ctrl-C saves checkpoints and stops, a second one kills; the same command continues.
    """
    from rlt_core.study.bundle import require_place, write_bundle
    from rlt_core.study.freeze import frozen_path, require_frozen
    from rlt_core.study.show import pilot_note

    place = bundle or file.with_suffix(".bundle")
    resolved, _ = require_frozen(file)
    study = resolved.study
    require_place(place, frozen_path(file))
    for experiment in study.experiments:
        plan = new_plan(experiment, study.profile, study.overrides, None, store)
        plan.require_computable()
        print(f"{experiment}:")
        if status := compute(plan, quiet=False):
            raise typer.Exit(status)
    _show(write_bundle(resolved, open_store(store), place))
    if note := pilot_note(study):
        print(note)
    print(f"bundle: {place}  (check it anywhere: rlt study verify {place})")


@app.command()
def verify(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder written by `rlt study run`.")
    ],
) -> None:
    """Recompute every verdict from a bundle's tables, without a store or a model.

    Exit status 1 if anything differs.
    """
    from rlt_core.study.bundle import verify

    if not bundle.is_dir():
        raise UserError(f"{bundle}: there is no such folder")
    found = verify(bundle)
    if found.verdicts:
        _show(found.verdicts)
    for problem in found.problems:
        print(problem)
    frozen = found.freeze
    print(
        f"{frozen.study}: frozen {frozen.frozen_at:%Y-%m-%d %H:%M} UTC at commit "
        f"{frozen.git_commit or 'unknown'}, study sha256 {frozen.study_sha256}"
    )
    if found.problems:
        print(f"{len(found.problems)} of the bundle's statements cannot be confirmed")
        raise typer.Exit(1)
    print(f"{len(found.verdicts)} verdicts recomputed from the tables: all agree")


def _show(verdicts: Sequence[Verdict]) -> None:
    from rlt_core.study.show import COLUMNS, cells

    table = new_table(*COLUMNS, right=("p", "adjusted p", "detectable"))
    table.columns[COLUMNS.index("statement")].max_width = 40
    for verdict in verdicts:
        row: dict[str, str | Text] = dict(zip(COLUMNS, cells(verdict), strict=True))
        row["verdict"] = Text(str(row["verdict"]), STYLES[verdict.verdict])
        table.add_row(*row.values())
    table_console().print(table)
