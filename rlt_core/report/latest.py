"""The reports of a store: committed ones, and those of what exists of an unfinished run."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rlt_core.errors import UserError
from rlt_core.names import nearest
from rlt_core.report.unfinished import ABOUT, FOLDER
from rlt_core.store import Store
from rlt_core.store.files import Damaged, tree


class Report(NamedTuple):
    """A report in the store."""

    experiment: str
    profile: str
    finished: float
    """Seconds since 1970."""
    folder: Callable[[], Path]
    """Returns its files, checked."""


def latest_report(store: Store, experiment: str | None, profile: str | None) -> Path:
    """Return the folder of the newest report (of an experiment, of a profile). Raises UserError."""
    reports = [*_committed(store), *_unfinished(store)]
    for given, known, what in (
        (experiment, {one.experiment for one in reports}, "report of"),
        (profile, {one.profile for one in reports}, "report of profile"),
    ):
        if given is not None and given not in known:
            fix = nearest(given, known) if known else "`rlt run` makes one"
            raise UserError(f"no {what} {given} in {store}; {fix}")
    found = [
        one
        for one in reports
        if experiment in (None, one.experiment) and profile in (None, one.profile)
    ]
    if not found:
        raise UserError(f"no report{f' of {experiment}' if experiment else ''} in {store}")
    return max(found, key=lambda one: one.finished).folder()


def experiment_of(node: str) -> str:
    """Return the experiment of a report node: `table-1` of `report[table-1]`."""
    return node.removeprefix("report").strip("[]") or "full-pipeline"


def _committed(store: Store) -> Iterator[Report]:
    """Yield the reports that are named `{profile}/report` or `{profile}/report[experiment]`."""
    for name, ref in store.refs().items():
        profile, _, node = name.partition("/")
        if node.partition("[")[0] == "report" and (made := store.manifest(ref.kind, ref.key)):
            seconds = made.finished_at.timestamp()
            yield Report(experiment_of(node), profile, seconds, partial(store.intact, made))


def _unfinished(store: Store) -> Iterator[Report]:
    """Yield the reports of what exists; those that cannot be read are left out."""
    for key, node in store.unfinished().items():
        with suppress(Damaged, ValueError, LookupError, TypeError):
            about = json.loads(store.files.read(f"{FOLDER.format(key=key)}/{ABOUT}") or b"")
            profile, seconds = str(about["profile"]), float(about["seconds"])
            yield Report(experiment_of(node), profile, seconds, partial(_local_copy, store, key))


def _local_copy(store: Store, key: str) -> Path:
    """Return a folder with the files of a report of what exists. Raises Damaged for a link."""
    folder = FOLDER.format(key=key)
    if store.files.is_local:
        tree(store.files.local(folder))
        return store.files.local(folder)
    copy = Path(tempfile.mkdtemp(prefix="rlt-report-"))
    for name in store.files.names(folder):
        (copy / name).write_bytes(store.files.read(f"{folder}/{name}") or b"")
    return copy
