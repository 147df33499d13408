"""The report of what exists, of a run that was stopped or failed."""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rlt_core.graph import Node
from rlt_core.stages import ReportConfig
from rlt_core.store import Manifest, Store

STARTS = ("dataset-prep", "base-model")
"""Stages of which alone there is nothing to report."""
ABOUT = "about.json"
FOLDER = "work/{key}/report"
"""Where it is in the store, until the report itself is committed."""


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
    config = _without_the_missing(node.config, list(there.values()))
    data = ReportData(inputs, config, node.key, store, of=len(node.inputs))
    folder = FOLDER.format(key=node.key)
    with tempfile.TemporaryDirectory() as made:
        render_report(data, Path(made))
        store.files.write(f"work/{node.key}/node.txt", node.name.encode())
        for file in sorted(Path(made).iterdir()):
            store.files.write(f"{folder}/{file.name}", file.read_bytes())
    about = {"profile": config.profile, "seconds": time.time()}
    store.files.write(f"{folder}/{ABOUT}", json.dumps(about).encode())
    return folder


def _without_the_missing(config: ReportConfig, there: list[Manifest]) -> ReportConfig:
    """Mark the rows whose models were not evaluated, and leave out a comparison of traces that
    were not all scored."""
    evaluated = {made.label for made in there if made.stage == "evaluation"}
    rows = tuple(
        row
        if row.missing or f"evaluation[{row.model}]" in evaluated
        else row.model_copy(update={"missing": "did not run"})
        for row in config.rows
    )
    seeds = [
        {made.seed for made in there if made.label == f"trace-scoring[{name}]"}
        for name in config.compared or ()
    ]
    complete = bool(seeds) and all(seeds) and all(each == seeds[0] for each in seeds)
    kept = config.compared if complete else None
    return config.model_copy(update={"rows": rows, "compared": kept})
