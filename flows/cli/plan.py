"""`rlt plan`: every node, whether it is in the store, and what the missing ones need."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from flows.cli.options import (
    DEFAULT_STORE,
    ConfigFileOption,
    JsonOption,
    ProfileOption,
    SetOption,
    StoreOption,
    TargetArgument,
    new_plan,
)
from flows.cli.tables import new_table, table_console
from flows.cli.terminal import Console, print, print_data
from flows.planning import Plan
from rlt_core.data.sources import found_layout
from rlt_core.estimate import Machine, NodeEstimate, assumptions, describe_disk, disk_needed, short
from rlt_core.graph import Node, Planned
from rlt_core.prompts.format import label_of
from rlt_core.stages import DatasetPrepConfig, TraceScoringConfig
from rlt_core.store import Store

CHANGES_SHOWN = 3
GIB = 1 << 30
COLUMNS = ("params", "GiB/GPU", "GPUs", "tokens", "GPU-h", "hours", "host", "disk", "artifact")
"""`host` and `disk`: the most that one node needs while it is computed."""

Estimates = Mapping[str, NodeEstimate]
"""Node key -> estimate."""


def plan(
    target: TargetArgument = "full-pipeline",
    profile: ProfileOption = None,
    set_: SetOption = None,
    config_file: ConfigFileOption = None,
    store: StoreOption = DEFAULT_STORE,
    estimates: Annotated[
        bool | None,
        typer.Option(
            "--estimates/--no-estimates",
            help="Needs of the missing nodes; by default shown for nodes on GPUs.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every node, whether it is in the store, what changed, and what it needs.

    Exit status 2 if a node cannot fit.
    """
    resolved = new_plan(target, profile, set_, config_file, store)
    planned, found = resolved.nodes, resolved.estimates
    show_estimators(planned)
    if as_json:
        rows = [{**row(item), "estimate": asdict(found[item.node.key])} for item in planned]
        print_data(json.dumps(rows, indent=1))
    else:
        console = table_console()
        _show_nodes(console, planned)
        for line in (*_layouts(planned), *_formats(planned)):
            console.print(line, soft_wrap=True)
        if estimates or (estimates is None and any(each.on_gpu for each in found.values())):
            _show_estimates(console, resolved)
    resolved.require_readable()
    resolved.require_fit()


def show_estimators(planned: Sequence[Planned]) -> None:
    """Print the KL estimator, and the reason, of each trace-scoring of off-policy traces."""
    notes = {
        item.node.label: item.node.config.note
        for item in planned
        if isinstance(item.node.config, TraceScoringConfig) and item.node.config.note
    }
    for label, note in notes.items():
        print(f"{label}: {note}", file=sys.stderr)


def row(item: Planned) -> dict[str, Any]:
    """Return a node of a plan as `--json` prints it."""
    return {
        "name": item.node.name,
        "stage": item.node.stage.name,
        "seed": item.node.seed,
        "key": item.node.key,
        "format": label_of(item.node.config.model_dump()),
        "hit": item.hit,
        "changes": list(item.changes),
    }


def _show_nodes(console: Console, planned: Sequence[Planned]) -> None:
    table = new_table("node", "key", "", "what changed", whole=("node", "key", ""))
    for item in planned:
        shown = [*item.changes[:CHANGES_SHOWN]]
        if len(item.changes) > CHANGES_SHOWN:
            shown.append(f"and {len(item.changes) - CHANGES_SHOWN} more")
        what = Text("hit", "green") if item.hit else Text("miss", "yellow")
        table.add_row(item.node.name, item.node.key, what, "\n".join(shown))
    console.print(table)
    misses = sum(not item.hit for item in planned)
    console.print(f"{len(planned)} nodes: {len(planned) - misses} hits, {misses} misses")


def _layouts(planned: Sequence[Planned]) -> Iterator[str]:
    """Yield how data files are read where that is not configured."""
    for item in planned:
        config, path = item.node.config, item.node.paths.get("source")
        if not isinstance(config, DatasetPrepConfig) or path is None or item.hit:
            continue
        if found := found_layout(config.data.model_copy(update={"source": path})):
            yield f"{item.node.name}: {found}"


def _formats(planned: Sequence[Planned]) -> list[str]:
    """Return one line per prompt format with its nodes, the most common one last."""
    nodes: dict[str, list[str]] = {}
    for item in planned:
        label = label_of(item.node.config.model_dump())
        if label and item.node.stage.name != "dataset-prep":
            nodes.setdefault(label, []).append(item.node.name)
    *few, most = sorted(nodes, key=lambda label: len(nodes[label])) or [""]
    lines = [f"prompt format {label}: {', '.join(nodes[label])}" for label in few]
    return [*lines, f"prompt format {most}: all {'other nodes' if few else 'nodes'}"][: len(nodes)]


# ---------------------------------------------------------------- estimates
def _show_estimates(console: Console, plan: Plan) -> None:
    """Print the needs of the missing nodes: one line per node and per stage, sum, assumptions."""
    missing, found = plan.missing, plan.estimates
    if not missing:
        return
    stages: dict[str, list[NodeEstimate]] = {}
    table = new_table("to be computed", *COLUMNS, right=COLUMNS, whole=COLUMNS)
    for node in missing:
        stages.setdefault(node.stage.name, []).append(found[node.key])
        table.add_row(node.name, *_cells([found[node.key]]))
    sums = new_table("stage", *COLUMNS, right=COLUMNS, whole=COLUMNS)
    for stage, own in stages.items():
        sums.add_row(f"{stage} ({len(own)})", *_cells(own))
    sums.add_row("all", *_cells([found[node.key] for node in missing]), style="bold")
    for each in (table, sums):
        console.print()
        console.print(each)
    console.print(_disk(plan.store, missing, found))
    for line in assumptions(plan.config, missing, found):
        console.print(line, style="dim")


def _disk(store: Store, missing: Sequence[Node], found: Estimates) -> str:
    needed, widest = disk_needed(missing, found)
    at_most = describe_disk(widest, found[widest.key])
    said = f"disk of the store, if nodes run one at a time: {short(needed)}B ({at_most})"
    free = Machine.here(store.files.local(""), []).disk if store.files.is_local else None
    return said if free is None else f"{said}; free: {short(free)}B"


def _cells(own: Sequence[NodeEstimate]) -> list[str]:
    """Return the `COLUMNS` of some nodes: the maximum of sizes held at once, the sum of others."""
    parameters = [each.parameters for each in own if each.parameters is not None]
    peaks = [each.peak_bytes for each in own if each.peak_bytes is not None]
    hours = [each for each in own if each.gpu_hours is not None]
    unknown = any(each.gpus and each.peak_bytes is None for each in own)
    tokens, size = (sum(getattr(each, n) for each in own) for n in ("tokens", "artifact_bytes"))
    host, disk = (max(getattr(each, n) or 0 for each in own) for n in ("host_bytes", "disk_bytes"))
    return [
        "unknown" if unknown else short(max(parameters)) if parameters else "-",
        "unknown" if unknown else f"{max(peaks) / GIB:.1f}" if peaks else "-",
        str(max(each.gpus for each in own)) if any(each.on_gpu for each in own) else "-",
        short(tokens) if tokens else "-",
        f"{sum(each.gpu_hours or 0 for each in hours):.1f}" if hours else "-",
        f"{sum(each.wall_hours or 0 for each in hours):.1f}" if hours else "-",
        f"{host / GIB:.1f} GiB" if host else "-",
        f"{short(disk)}B" if disk else "-",
        f"{short(size)}B" if size else "-",
    ]
