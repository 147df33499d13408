"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlt_core.errors import UserError
from rlt_core.store import Store

DEFAULT_STORE = "rlt-store"

TargetArgument = Annotated[
    str, typer.Argument(help="An experiment (full-pipeline, table-1, … or all), or a stage.")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-gpu-hours",
        min=0,
        help="Begin no node that would take this run beyond so many GPU-hours (estimates; what "
        "was computed counts as it was).",
    ),
]
StoreOption = Annotated[
    str, typer.Option("--store", envvar="RLT_STORE", help="A folder or s3://bucket/prefix.")
]
ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="Which config to start from.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, e.g. data.n_train=100."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def store_place(store: str) -> str:
    """A store that means the same from any folder."""
    return store if "://" in store else str(Path(store).expanduser().absolute())


def open_store(store: str) -> Store:
    """The store. Raises UserError if its place is a file."""
    if "://" not in store and Path(store).is_file():
        raise UserError(f"--store {store}: this is a file; give a folder or s3://bucket/prefix")
    return Store(store)


def existing_store(store: str) -> Store:
    """The store, where an empty one would pass for a result. Raises UserError if its folder is not
    there."""
    if "://" not in store and not Path(store).expanduser().exists():
        raise UserError(
            f"no store at {store}: there is no such folder; `rlt run` makes one, --store or "
            "RLT_STORE names another"
        )
    return open_store(store)


def check_parquet(output: Path) -> None:
    """Raises UserError, before the work, for an --output that cannot be written."""
    if output.suffix != ".parquet":
        raise UserError(f"--output {output}: Parquet is written; end its name in .parquet")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
