"""`rlt run`, `rlt status`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import options
from flows.cli.plan import row, show_estimators
from flows.cli.progress import Display, stop_requests
from flows.cli.report import near, show
from flows.cli.terminal import Console, print, print_json, table_console
from flows.cli.watch import announced, line_of, watch
from flows.planning import Plan
from flows.schedule import expected_seconds, seen_seconds
from flows.server.local import current
from rlt_core.config.endpoint import Endpoint
from rlt_core.environment import exit_in_one_line
from rlt_core.graph import Planned
from rlt_core.store import Store
from tasks.stage import require_one_machine


# ---------------------------------------------------------------- run
def run(
    target: options.TargetArgument = "full-pipeline",
    profile: options.ProfileOption = None,
    set_: options.SetOption = None,
    config_file: options.ConfigFileOption = None,
    store: options.StoreOption = options.DEFAULT_STORE,
    budget_gpu_hours: options.BudgetOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compute the nodes that are not in the store.

    Ctrl-C saves checkpoints after the current steps and stops, a second one kills; the same command
    continues.
    """
    plan = options.new_plan(target, profile, set_, config_file, store, budget_gpu_hours)
    plan.require_computable()
    show_estimators(plan.nodes)
    status = compute(plan, quiet=as_json)
    if as_json:
        committed = plan.store.manifests_of(item.node.ref for item in plan.nodes)
        nodes = [{**row(item), "committed": item.node.key in committed} for item in plan.nodes]
        print_json({"status": status, "nodes": nodes})
    elif status == 0:
        _summary(plan.store, plan.nodes)
    else:
        for experiment in plan.report_what_exists():
            print(f"what exists: rlt report {experiment} --profile {plan.profile}")
    raise typer.Exit(status)


def compute(plan: Plan, quiet: bool) -> int:
    """Compute the nodes that are not in the store, and name all; returns the exit status."""
    if not quiet:
        there = len(plan.nodes) - len(plan.missing)
        print(f"{len(plan.nodes)} nodes: {there} in the store, {len(plan.missing)} to compute")
    if not plan.missing:
        plan.name_artifacts(item.node.key for item in plan.nodes)
        return 0
    for node in plan.missing:
        require_one_machine(node.name, node.stage, plan.resources(node))
        if node.stage.spends == "requests":
            endpoint = Endpoint.of_environment()
            if plan.config.resources.budget_usd is not None:
                endpoint.require()
    plan.store.files.require_writable()
    plan.require_room_here()
    files = plan.store.files
    with exit_in_one_line(Path(files.root) if files.is_local else Path(".")):
        status = _compute_missing(plan, quiet)
    if status == 130 and not quiet:
        print("stopped; the same command continues from here", file=sys.stderr)
    return status


def _compute_missing(plan: Plan, quiet: bool) -> int:
    """Compute the missing nodes in children of this process; return the exit status.

    The first Ctrl-C waits for their current steps, the second kills them.
    """
    from flows.executors import LocalExecutor
    from flows.pipeline import run_plan
    from tasks.child_process import ChildProcesses

    seen = seen_seconds(plan)
    seconds = {
        node.name: seen.get(node.key) or expected_seconds(plan.estimates[node.key])
        for node in plan.missing
    }
    children = ChildProcesses(sorted({node.stage.module for node in plan.missing}))
    display = Display(len(seconds), Console(stderr=quiet), weights=seconds, store=plan.store)

    def stop(grace_s: float) -> None:
        display.stopping(grace_s)
        children.stop(grace_s)

    name = f"{plan.profile}/{plan.target}"
    with display, announced(plan.store, name, display.note) as status, stop_requests(stop):
        executor = LocalExecutor(children, display, plan.config.resources.cores)
        outcomes = run_plan(plan, [[spec] for spec in plan.specs()], executor, display)
        statuses = {outcome.status for outcome in outcomes.values()}
        ends = {"failed": 1, "mistake": 2, "stopped": 130, "over budget": 1, "not run": 1}
        status.append(next((code for name, code in ends.items() if name in statuses), 0))
        return status[-1]


def _summary(store: Store, planned: list[Planned]) -> None:
    """Print each report on one screen, and where the nodes are."""
    console = table_console()
    for node in (item.node for item in planned if item.node.stage.name == "report"):
        manifest = store.manifest(node.ref.kind, node.key)
        assert manifest
        folder = store.intact(manifest)
        show(console, folder)
        console.print(f"report: {near(folder / 'report.md')}", soft_wrap=True)
    console.print(f"{len(planned)} nodes are in {store}", soft_wrap=True)


# ---------------------------------------------------------------- status
def status(
    store: options.ExistingStore = options.DEFAULT_STORE,
    as_json: options.JsonOption = False,
    watch_: Annotated[
        bool, typer.Option("--watch", help="Follow what runs, and exit as the run exits.")
    ] = False,
) -> None:
    """Show running and unfinished nodes, and the latest run of each profile."""
    if watch_:
        raise typer.Exit(watch(store, Console()))
    working, unfinished = store.working(), store.unfinished()
    profiles: dict[str, list[str]] = {}
    for name in store.refs():
        profile, _, node = name.partition("/")
        profiles.setdefault(profile, []).append(node)
    if as_json:
        shown = {"working": working, "unfinished": unfinished, "profiles": profiles}
        print_json(shown)
        return
    print(f"store {store}")
    if running := current():
        print(f"  server      {running.dashboard}, store {running.store}  (rlt down stops it)")
    for key, lease in sorted(working.items()):
        place = f"{lease['host']} pid {lease['pid']}"
        print(f"  running     {line_of(lease)}  {key}  {place}")
    for key, name in unfinished.items():
        print(f"  unfinished  {name}  {key}  (the same command continues from its checkpoints)")
    for profile, nodes in sorted(profiles.items()):
        reported = any(node.partition("[")[0] == "report" for node in nodes)
        has = "with its report" if reported else "no report yet"
        print(f"  profile     {profile}: {len(nodes)} nodes, {has}")
