"""The reports of a store: committed ones, and those of what exists of an unfinished run."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rlt_core.errors import UserError
from rlt_core.graph import Node
from rlt_core.names import nearest
from rlt_core.stages import ReportConfig
from rlt_core.store import Manifest, Store
from rlt_core.store.files import Damaged, tree

STARTS = ("dataset-prep", "base-model")
"""Stages of which alone there is nothing to report."""
ABOUT = "about.json"
FOLDER = "work/{key}/report"
"""Where the report of what exists is, until the report itself is committed."""


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
    for given, field in ((experiment, "experiment"), (profile, "profile")):
        known = {str(getattr(one, field)) for one in reports}
        if known and given is not None:
            if given not in known:
                hint = nearest(given, known)
                raise UserError(f"no report of {field} {given!r} in {store}; {hint}")
            reports = [one for one in reports if getattr(one, field) == given]
    if not reports:
        raise UserError(f"no report in {store}; `rlt run` makes one")
    return max(reports, key=lambda one: one.finished).folder()


def _experiment_of(node: str) -> str:
    """Return the experiment of a report node: `table-1` of `report[table-1]`."""
    return node.removeprefix("report").strip("[]") or "full-pipeline"


def _committed(store: Store) -> Iterator[Report]:
    """Yield the reports that are named `{profile}/report` or `{profile}/report[experiment]`."""
    for name, ref in store.refs().items():
        profile, _, node = name.partition("/")
        if node.partition("[")[0] == "report" and (made := store.manifest(ref.kind, ref.key)):
            seconds = made.finished_at.timestamp()
            yield Report(_experiment_of(node), profile, seconds, partial(store.intact, made))


def _unfinished(store: Store) -> Iterator[Report]:
    """Yield the reports of what exists; those that cannot be read are left out."""
    for key, node in store.unfinished().items():
        with suppress(Damaged, ValueError, LookupError, TypeError):
            about = json.loads(store.files.read(f"{FOLDER.format(key=key)}/{ABOUT}") or b"")
            profile, seconds = str(about["profile"]), float(about["seconds"])
            yield Report(_experiment_of(node), profile, seconds, partial(_local_copy, store, key))


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


def report_what_exists(node: Node, store: Store, committed: Mapping[str, Manifest]) -> str | None:
    """Write the report of those inputs of a report node that are committed (by key) and return its
    folder in the store; None if there is nothing to report."""
    there = {
        name: committed[parent.key]
        for name, parent in node.inputs.items()
        if parent.key in committed
    }
    if all(made.stage in STARTS for made in there.values()):
        return None
    from rlt_core.report.gather import ReportData  # slow to import
    from rlt_core.report.render import render_report

    assert isinstance(node.config, ReportConfig)
    inputs = {name: (made, store.intact(made, ".parquet")) for name, made in there.items()}
    data = ReportData(inputs, node.config, node.key, store, of=len(node.inputs))
    folder = FOLDER.format(key=node.key)
    with tempfile.TemporaryDirectory() as made:
        render_report(data, Path(made))
        about = {"profile": node.config.profile, "seconds": time.time()}
        (Path(made) / ABOUT).write_text(json.dumps(about))
        store.files.write(f"work/{node.key}/node.txt", node.name.encode())
        for file in sorted(Path(made).iterdir(), key=lambda file: file.name == ABOUT):
            store.files.write(f"{folder}/{file.name}", file.read_bytes())
    return folder
