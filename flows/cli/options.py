"""Options that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlt_core.errors import UserError
from rlt_core.overrides import load_config, read_config
from rlt_core.store import Store

if TYPE_CHECKING:
    from flows.planning import Plan

DEFAULT_STORE: Any = "rlt-store"
DEFAULT_PROFILE = "tiny"


def open_store(store: str) -> Store:
    """Return the store. Raises UserError if its place is a file."""
    if "://" not in store and Path(store).is_file():
        raise UserError(f"--store {store}: this is a file; give a folder or s3://bucket/prefix")
    return Store(store)


def existing_store(store: str) -> Store:
    """Return a store that must exist, since an empty one would look like a result. Raises
    UserError."""
    opened = open_store(store)
    if not is_there(opened):
        raise UserError(
            f"no store at {store}: nothing is there; `rlt run` makes one, --store or RLT_STORE "
            "names another"
        )
    return opened


def is_there(store: Store) -> bool:
    """Whether there is a folder, or anything at all on S3."""
    files = store.files
    return Path(files.root).exists() if files.is_local else bool(files.listed(""))


TargetArgument = Annotated[
    str, typer.Argument(help="An experiment (full-pipeline, table-1, … or all), or a stage.")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-gpu-hours",
        min=0,
        help="Limit on the run's GPU-hours; a node whose estimate would exceed it is not started.",
    ),
]
STORE = {"envvar": "RLT_STORE", "help": "A folder or s3://bucket/prefix."}
StoreOption = Annotated[str, typer.Option("--store", **STORE)]
ExistingStore = Annotated[
    Store, typer.Option("--store", parser=existing_store, metavar="<str>", **STORE)
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile", "-p", help="Config to start from; by default the --config file's, or tiny."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Changed field, e.g. data.n_train=100."),
]
ConfigFileOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Changed fields (TOML), or the config of a run (STORE/runs/RUN.json).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def started_from(
    profile: str | None, config_file: Path | None, set_: Sequence[str] | None
) -> tuple[str, list[str]]:
    """Return the profile, and the fields that a config file and --set change. Raises UserError."""
    if config_file is None:
        return profile or DEFAULT_PROFILE, [*(set_ or ())]
    named, changes = read_config(config_file)
    profile, changes = profile or named or DEFAULT_PROFILE, [*changes, *(set_ or ())]
    try:
        load_config(profile, changes)
    except UserError as error:
        also = " with --set" if set_ else ""
        raise UserError(f"--config {config_file}{also}: {error}") from None
    return profile, changes


def new_plan(
    target: str,
    profile: str | None,
    set_: Sequence[str] | None,
    config_file: Path | None,
    store: str,
    budget_gpu_hours: float | None = None,
) -> Plan:
    """Resolve the config and look up every node. Raises UserError, also if the store is a file."""
    from flows.planning import Plan

    open_store(store)
    place = store_place(store)
    profile, overrides = started_from(profile, config_file, set_)
    return Plan.of(target, profile, overrides, store=place, budget_gpu_hours=budget_gpu_hours)


def store_place(store: str) -> str:
    """Return the store's address, independent of the working directory."""
    return store if "://" in store else str(Path(store).expanduser().absolute())


def check_output(
    output: Path, suffixes: Sequence[str] = (".parquet",), source: Path | None = None
) -> None:
    """Raise UserError, before the work, for an --output that cannot be written, or that is the
    file which the command reads."""
    if suffixes and output.suffix not in suffixes:
        raise UserError(f"--output {output}: end its name in {' or '.join(suffixes)}")
    if output.is_dir():
        raise UserError(f"--output {output}: this is a folder; name a file")
    if source and source.exists() and output.exists() and output.samefile(source):
        raise UserError(f"--output {output}: this is the file that is read; name another")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
