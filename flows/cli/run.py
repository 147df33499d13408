"""`rlt run`, `rlt status`, `rlt report`."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from flows.cli.options import (
    DEFAULT_STORE,
    BudgetOption,
    ConfigFileOption,
    JsonOption,
    ProfileOption,
    SetOption,
    StoreOption,
    TargetArgument,
    new_plan,
    open_store,
)
from flows.cli.plan import row, show_estimators
from flows.cli.tables import table_console
from flows.cli.terminal import Console, print, print_data
from flows.planning import Plan
from flows.server.local import current
from rlt_core.config.refinement import Endpoint
from rlt_core.errors import UserError
from rlt_core.graph import Planned
from rlt_core.store import Manifest, Store
from tasks.stage import require_one_machine

CURVE_POINTS = 8
"""Points of a training's reward curve in the terminal."""


# ---------------------------------------------------------------- run
def run(
    target: TargetArgument = "full-pipeline",
    profile: ProfileOption = None,
    set_: SetOption = None,
    config_file: ConfigFileOption = None,
    store: StoreOption = DEFAULT_STORE,
    budget_gpu_hours: BudgetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute the nodes that are not in the store.

    Ctrl-C once checkpoints and stops; the same command continues.
    """
    plan = new_plan(target, profile, set_, config_file, store, budget_gpu_hours)
    plan.require_computable()
    show_estimators(plan.nodes)
    status = compute(plan, quiet=as_json)
    if as_json:
        committed = plan.store.manifests_of(item.node.ref for item in plan.nodes)
        nodes = [{**row(item), "committed": item.node.key in committed} for item in plan.nodes]
        print_data(json.dumps({"status": status, "nodes": nodes}, indent=1))
    elif status == 0:
        _summary(plan.store, plan.nodes)
    raise typer.Exit(status)


def compute(plan: Plan, quiet: bool) -> int:
    """Compute the nodes that are not in the store, and name all; returns the exit status."""
    if not plan.missing:
        plan.name_artifacts(item.node.key for item in plan.nodes)
        return 0
    for node in plan.missing:
        require_one_machine(node.name, node.stage, plan.resources(node))
        if node.stage.name == "trace-refinement":
            Endpoint.of_environment()
    plan.store.files.require_writable()
    plan.require_room_here()
    status = _supervise(plan, quiet)
    if status == 130 and not quiet:
        print("stopped; the same command continues from here", file=sys.stderr)
    return status


def _supervise(plan: Plan, quiet: bool) -> int:
    """Compute the plan in a process of its own session and pass a stop request on to it."""
    runner = subprocess.Popen(
        [sys.executable, "-m", "flows.runner"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr if quiet else None,
        start_new_session=True,
        env=os.environ | {"COLUMNS": str(Console().width)},
    )
    assert runner.stdin
    pickle.dump(plan, runner.stdin)
    runner.stdin.flush()

    def stop(*_: object) -> None:
        if runner.stdin and not runner.stdin.closed:
            print("\nstopping: saving a checkpoint (up to 30 s) …", file=sys.stderr)
            runner.stdin.close()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return runner.wait()


def _summary(store: Store, planned: list[Planned]) -> None:
    """Print where the nodes are, the reward curves, and the scores of each report."""
    console = table_console()
    console.print(f"{len(planned)} nodes are in {store}")
    for line in _reward_curves(store, planned):
        console.print(line, soft_wrap=True)
    for node in (item.node for item in planned if item.node.stage.name == "report"):
        manifest = store.manifest(node.ref.kind, node.key)
        assert manifest
        _show_scores(console, store, manifest)


def _reward_curves(store: Store, planned: list[Planned]) -> Iterator[str]:
    """Yield one line per GRPO node: the mean reward of each eighth of its steps."""
    from rlt_core.rows import read_rows

    for node in (item.node for item in planned):
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
        yield f"reward of {node.name}, mean of every {size} steps: {curve}"


def _show_scores(console: Console, store: Store, report: Manifest) -> None:
    from rlt_core.report.terminal import summary_table

    folder = store.intact(report)
    if report.label != "report":
        console.print(f"\n{_experiment(report.label)}", style="bold")
    console.print(summary_table(folder))
    console.print(f"report: {folder / 'report.md'}", soft_wrap=True)


# ---------------------------------------------------------------- report and status
def _experiment(node: str) -> str:
    """Return the experiment of a report node: `table-1` of `report[table-1]`."""
    return node.removeprefix("report").strip("[]") or "full-pipeline"


def _latest_report(store: Store, profile: str | None, experiment: str | None) -> Manifest:
    """Return the newest report named `{profile}/report` or `{profile}/report[experiment]`."""
    named: dict[str, str] = {}
    for name in store.refs():
        of_profile, _, node = name.partition("/")
        if node.partition("[")[0] == "report" and profile in (None, of_profile):
            named[name] = _experiment(node)
    names = [name for name, title in named.items() if experiment in (None, title)]
    found = [ref for name in names if (ref := store.ref(name))]
    reports = [m for ref in found if (m := store.manifest(ref.kind, ref.key))]
    if not reports:
        which = f" of {experiment}" if experiment else ""
        which += f" of profile {profile}" if profile else ""
        others = ", ".join(sorted(set(named.values())))
        fix = f"there are reports of {others}" if others else "`rlt run full-pipeline` makes one"
        raise UserError(f"no report{which} in {store}; {fix}")
    return max(reports, key=lambda manifest: manifest.finished_at)


def report(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Experiment, e.g. table-1; by default the newest."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Profile; by default the newest.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    path: Annotated[bool, typer.Option("--path", help="Print the report's path only.")] = False,
) -> None:
    """Show the latest report."""
    opened = open_store(store)
    file = opened.intact(_latest_report(opened, profile, name)) / "report.md"
    if path:
        print(file)
    elif sys.stdout.isatty():
        from rich.markdown import Markdown  # slow to import

        Console().print(Markdown(file.read_text(), hyperlinks=False))
        print(f"\n{file}")
    else:
        print(file.read_text())


def status(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show running and unfinished nodes, and the latest run of each profile."""
    opened = open_store(store)
    working, unfinished = opened.working(), opened.unfinished()
    profiles: dict[str, list[str]] = {}
    for name in opened.refs():
        profile, _, node = name.partition("/")
        profiles.setdefault(profile, []).append(node)
    if as_json:
        shown = {"working": working, "unfinished": unfinished, "profiles": profiles}
        print_data(json.dumps(shown, indent=1))
        return
    print(f"store {opened}")
    if running := current():
        print(f"  server      {running.dashboard}, store {running.store}  (rlt down stops it)")
    for key, lease in sorted(working.items()):
        place = f"{lease['host']} pid {lease['pid']}"
        print(f"  running     {lease.get('name') or key}  {key}  {place}")
    for key, name in unfinished.items():
        print(f"  unfinished  {name}  {key}  (the same command continues from its checkpoints)")
    for profile, nodes in sorted(profiles.items()):
        reported = any(node.partition("[")[0] == "report" for node in nodes)
        has = "with its report" if reported else "no report yet"
        print(f"  profile     {profile}: {len(nodes)} nodes, {has}")
