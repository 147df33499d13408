"""`rlt run`, `rlt status`, `rlt report`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.options import (
    DEFAULT_STORE,
    BudgetOption,
    JsonOption,
    ProfileOption,
    SetOption,
    StoreOption,
    TargetArgument,
    open_store,
    store_place,
)
from flows.cli.plan import row, show_estimators
from flows.cli.progress import table_console
from flows.request import Request, name_nodes
from flows.server.local import current
from rlt_core.config.refinement import Endpoint
from rlt_core.errors import UserError
from rlt_core.graph import Planned
from rlt_core.store import Manifest, Store
from tasks.stage import require_one_machine

CURVE_POINTS = 8
"""Means that stand for a training's reward curve in the terminal."""


def _request(target: str, profile: str, overrides: list[str] | None, store: str) -> Request:
    open_store(store)
    return Request(
        target=target,
        profile=profile,
        overrides=tuple(overrides or ()),
        store=store_place(store),
    )


# ---------------------------------------------------------------- run
def run(
    target: TargetArgument = "full-pipeline",
    profile: ProfileOption = "tiny",
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    budget_gpu_hours: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute what the store lacks. Ctrl-C once: checkpoint and stop; the same command goes on."""
    request = _request(target, profile, set_, store)
    request = request.model_copy(update={"budget_gpu_hours": budget_gpu_hours})
    planned = request.plan()
    show_estimators(planned)
    status = compute(request, planned, quiet=as_json)
    if as_json:
        store_ = Store(request.store)
        there = {p.node.key: store_.manifest(p.node.ref.kind, p.node.key) for p in planned}
        nodes = [{**row(p), "committed": there[p.node.key] is not None} for p in planned]
        print(json.dumps({"status": status, "nodes": nodes}, indent=1))
    elif status == 0:
        _summary(Store(request.store), planned)
    raise typer.Exit(status)


def compute(request: Request, planned: list[Planned], quiet: bool) -> int:
    """Compute what the store lacks, and name the nodes; returns the exit status."""
    store = Store(request.store)
    if all(item.hit for item in planned):
        name_nodes(store, request.profile, [item.node for item in planned])
        return 0
    _require_computable_here(request, planned)
    require_writable(store)
    request.require_room_here(planned)
    status = supervise(request, quiet)
    if status == 130 and not quiet:
        print("stopped; the same command goes on from here", file=sys.stderr)
    return status


def _require_computable_here(request: Request, planned: list[Planned]) -> None:
    """Raises UserError if what is missing cannot be computed on this machine alone."""
    resources = request.config().resources
    for node in (item.node for item in planned if not item.hit):
        require_one_machine(node.name, node.stage, resources.of(node.stage.name, node.variant))
        if node.stage.name == "trace-refinement":
            Endpoint.of_environment()


def require_writable(store: Store) -> None:
    """Raises UserError if nothing can be written there."""
    store.files.write(".writable", b"")
    store.files.remove(".writable")


def supervise(request: Request, quiet: bool) -> int:
    """Run the request in a process of its own session, pass the wish to stop on."""
    runner = subprocess.Popen(
        [sys.executable, "-m", "flows.runner"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr if quiet else None,
        start_new_session=True,
        env=os.environ | {"COLUMNS": str(Console().width)},
        text=True,
    )
    assert runner.stdin
    runner.stdin.write(request.model_dump_json() + "\n")
    runner.stdin.flush()

    def stop(*_: object) -> None:
        if runner.stdin and not runner.stdin.closed:
            print("\nstopping: work checkpoints and ends (up to 30 s) …", file=sys.stderr)
            runner.stdin.close()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return runner.wait()


def _summary(store: Store, planned: list[Planned]) -> None:
    """The table of scores and the report's path, if the target had a report."""
    reports = [item.node for item in planned if item.node.stage.name == "report"]
    console = table_console()
    console.print(f"{len(planned)} nodes are in {store}", highlight=False)
    for line in _reward_curves(store, planned):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for node in reports:
        manifest = store.manifest(node.ref.kind, node.key)
        assert manifest
        _show_scores(console, store, manifest)


def _reward_curves(store: Store, planned: list[Planned]) -> Iterator[str]:
    """Mean reward of each eighth of every GRPO node's steps, one line a node."""
    from rlt_core.rows import read_rows

    for item in planned:
        node = item.node
        if node.stage.name not in ("teacher-grpo", "student-grpo"):
            continue
        manifest = store.manifest(node.ref.kind, node.key)
        assert manifest
        folder = store.local(manifest.only(".parquet"))
        steps = read_rows(folder, "train_steps", ["step", "reward"])
        size = max(1, -(-len(steps) // CURVE_POINTS))
        parts = [steps[start : start + size] for start in range(0, len(steps), size)]
        means = [sum(row["reward"] for row in part) / len(part) for part in parts]
        curve = " ".join(f"{mean:.2f}" for mean in means)
        yield f"reward of {node.name}, means of {size} steps: {curve}"


def _show_scores(console: Console, store: Store, report: Manifest) -> None:
    from rlt_core.report.terminal import summary_table

    folder = store.local(report)
    if report.label != "report":
        console.print(f"\n{_title(report.label)}", style="bold", highlight=False)
    console.print(summary_table(folder))
    console.print(f"report: {folder / 'report.md'}", soft_wrap=True, highlight=False)


# ---------------------------------------------------------------- report and status
FULL_PIPELINE = "full-pipeline"


def _title(node: str) -> str:
    """The experiment of a report by the node's name: `table-1` of `report[table-1]`."""
    return node.removeprefix("report").strip("[]") or FULL_PIPELINE


def _latest_report(store: Store, profile: str | None, experiment: str | None) -> Manifest:
    """The newest report that `{profile}/report` or `{profile}/report[experiment]` names."""
    named: dict[str, str] = {}
    for name in store.refs():
        of_profile, _, node = name.partition("/")
        is_report = node == "report" or node.startswith("report[")
        if is_report and profile in (None, of_profile):
            named[name] = _title(node)
    names = [name for name, title in named.items() if experiment in (None, title)]
    found = [ref for name in names if (ref := store.ref(name))]
    reports = [m for ref in found if (m := store.manifest(ref.kind, ref.key))]
    if not reports:
        which = f" of {experiment}" if experiment else ""
        which += f" of profile {profile}" if profile else ""
        others = ", ".join(sorted(set(named.values())))
        mend = f"there are those of {others}" if others else "`rlt run full-pipeline` makes one"
        raise UserError(f"no report{which} in {store}; {mend}")
    return max(reports, key=lambda manifest: manifest.finished_at)


def report(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Of which experiment, as `table-1`; else the newest."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Of which profile; else the newest.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    path: Annotated[bool, typer.Option("--path", help="Print the report's path only.")] = False,
) -> None:
    """Show the latest report."""
    opened = open_store(store)
    manifest = _latest_report(opened, profile, name)
    file = opened.local(manifest) / "report.md"
    if path:
        print(file)
    elif sys.stdout.isatty():
        from rich.markdown import Markdown  # slow to import

        Console().print(Markdown(file.read_text()))
        print(f"\n{file}")
    else:
        print(file.read_text())


def status(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show what is being computed, what is unfinished, and the latest run of each profile."""
    opened = open_store(store)
    working = opened.working()
    unfinished = opened.unfinished()
    profiles: dict[str, list[str]] = {}
    for name in opened.refs():
        profile, _, node = name.partition("/")
        profiles.setdefault(profile, []).append(node)
    if as_json:
        shown = {"working": working, "unfinished": unfinished, "profiles": profiles}
        print(json.dumps(shown, indent=1))
        return
    print(f"store {opened}")
    if running := current():
        print(f"  server      {running.dashboard}, store {running.store}  (rlt down stops it)")
    for key, lease in sorted(working.items()):
        print(
            f"  working     {lease.get('name') or key}  {key}  {lease['host']} pid {lease['pid']}"
        )
    for key, name in unfinished.items():
        print(f"  unfinished  {name}  {key}  (the same command goes on from its checkpoints)")
    for profile, nodes in sorted(profiles.items()):
        reported = any(node.partition("[")[0] == "report" for node in nodes)
        has = "with its report" if reported else "no report yet"
        print(f"  profile     {profile}: {len(nodes)} nodes, {has}")
