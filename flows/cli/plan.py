"""`rlt plan`: every node, whether it is in the store, and what the missing ones need."""

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from flows.cli import options
from flows.cli.terminal import (
    Console,
    new_table,
    print,
    print_json,
    print_whole,
    some,
    table_console,
)
from flows.planning import Plan
from flows.schedule import seen_seconds
from rlt_core.budget import RESPONSES
from rlt_core.config.endpoint import Prices
from rlt_core.data.sources import found_layout
from rlt_core.estimate import NodeEstimate, assumptions, describe_disk, disk_needed, short
from rlt_core.graph import Planned, followers_of
from rlt_core.prompts.format import label_of
from rlt_core.report.terminal import duration
from rlt_core.stages import DatasetPrepConfig, TraceScoringConfig

CHANGES_SHOWN = 3
GIB = 1 << 30
COLUMNS = ("GiB/GPU", "GPUs", "tokens", "GPU-h", "hours", "host GiB", "disk")
"""`host GiB` and `disk`: the most that one node needs while it is computed.
`--json` has all of an estimate."""


def plan(
    target: options.TargetArgument = "full-pipeline",
    profile: options.ProfileOption = None,
    set_: options.SetOption = None,
    config_file: options.ConfigFileOption = None,
    store: options.StoreOption = options.DEFAULT_STORE,
    estimates: Annotated[
        bool | None,
        typer.Option(
            "--estimates/--no-estimates",
            help="Needs of the missing nodes; by default shown for nodes on GPUs.",
        ),
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="List every node to compute, with all that changed.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Show what a run would compute, why, and what it needs.

    Nodes that change only with what they read are counted under the change. Exit status 2 if a node
    cannot fit.
    """
    resolved = options.new_plan(target, profile, set_, config_file, store)
    planned, found = resolved.nodes, resolved.estimates
    show_estimators(planned)
    if as_json:
        rows = [{**row(item), "estimate": asdict(found[item.node.key])} for item in planned]
        print_json(rows)
    else:
        console = table_console()
        _show_nodes(console, resolved, changed)
        if not options.is_there(resolved.store):
            console.print(f"there is no store at {store} yet; a run makes it", soft_wrap=True)
        for line in (*_layouts(planned), *requests_of(resolved)):
            console.print(line, soft_wrap=True)
        if seconds := seen_seconds(resolved):
            console.print(_hours(resolved, seconds), soft_wrap=True)
        if estimates or (estimates is None and any(each.on_gpu for each in found.values())):
            _show_estimates(console, resolved, bool(estimates))
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


def _show_nodes(console: Console, plan: Plan, changed: bool) -> None:
    """Print the nodes to compute: the causes with what follows from them, or each on its own."""
    misses = [item for item in plan.nodes if not item.hit]
    followers = followers_of(misses)
    groups: dict[tuple[str, tuple[str, ...]], list[Planned]] = {}
    for item in misses:
        if changed or item.node.key in followers:
            name = item.node.name if changed else item.node.stage.name
            why = item.reasons if item.node.key in followers else ()
            groups.setdefault((name, why), []).append(item)
    keys = {item.node.key for item in misses}
    for (_, lines), same in groups.items():
        first = same[0].node
        key = f"  {first.key}" if len(same) == 1 else ""
        names = some([item.node.name for item in same])
        console.print(Text.assemble((names, "bold"), (key, "dim")), soft_wrap=True)
        shown = list(lines if changed else lines[:CHANGES_SHOWN])
        if len(lines) > len(shown):
            shown.append(f"and {len(lines) - len(shown)} more (--changed shows all)")
        if changed and (reads := [each.name for each in first.inputs.values() if each.key in keys]):
            shown.append(f"reads {some(reads)}")
        then = [each.node.stage.name for item in same for each in followers.get(item.node.key, ())]
        if then and not changed:
            counted = (f"{name} ({n})" if n > 1 else name for name, n in Counter(then).items())
            shown.append(f"→ {len(then)} that read it: {', '.join(counted)}")
        for line in shown:
            for part in textwrap.wrap(
                line, console.width - 4, break_long_words=False, break_on_hyphens=False
            ):
                console.print(f"    {part}", soft_wrap=True)
    there = len(plan.nodes) - len(misses)
    console.print(f"{len(plan.nodes)} nodes: {there} in the store, {len(misses)} to compute")


def _layouts(planned: Sequence[Planned]) -> Iterator[str]:
    """Yield how data files are read where that is not configured."""
    for item in planned:
        config, paths = item.node.config, item.node.paths
        if not isinstance(config, DatasetPrepConfig) or config.data.source not in paths or item.hit:
            continue
        if found := found_layout(config.data.located(paths)):
            yield f"{item.node.name}: {found}"


# ---------------------------------------------------------------- estimates
def to_compute(plan: Plan) -> Iterator[str]:
    """Yield what the missing nodes compute: tokens by stage and the time, and what is asked of
    LLMs; nothing where no model is needed."""
    tokens: Counter[str] = Counter()
    for node in plan.missing:
        tokens[node.stage.name] += plan.estimates[node.key].tokens
    if not +tokens:
        return
    said = ", ".join(f"{name} {short(n)} tokens" for name, n in tokens.items() if n)
    hours = sum(plan.estimates[node.key].gpu_hours or 0 for node in plan.missing)
    if hours:
        said += f"; {hours:.1f} GPU-hours"
    elif seconds := seen_seconds(plan):
        said += f"; {_hours(plan, seconds)}"
    yield f"to compute: about {said}"
    yield from requests_of(plan)


def requests_of(plan: Plan) -> Iterator[str]:
    """Yield what LLMs behind endpoints are still asked for, and what that costs."""
    prices = Prices.of_environment()
    for node in plan.missing:
        if not (asked := plan.estimates[node.key].requests):
            continue
        saved = plan.store.workspace(node.key).metrics(RESPONSES).values()
        done = sum(part.get("answers", 0) for part in saved)
        tokens = [(asked.count - done) * n for n in (asked.prompt, asked.completion, asked.limit)]
        costs = [prices.cost(tokens[0], answers) for answers in tokens[1:]]
        expected, longest = ("" if cost is None else f" ({cost:.4g})" for cost in costs)
        prompts, answers, most = (short(n).strip() for n in tokens)
        yield (
            f"{node.name}: {asked.count} requests{f', {done} of them answered' if done else ''}, "
            f"about {prompts} tokens of prompts and {answers} of answers{expected}, at most {most} "
            f"of answers{longest}{'' if expected else '; no prices are set'}"
        )


def _hours(plan: Plan, seconds: Mapping[str, float]) -> str:
    """How long the nodes on CPUs take, by what the store has seen."""
    unknown = [
        node.name
        for node in plan.missing
        if not plan.estimates[node.key].on_gpu and node.key not in seconds
    ]
    rest = f"; not seen yet: {some(unknown)}" if unknown else ""
    return (
        f"about {duration(sum(seconds.values()))} on the CPU, one node at a time, by the speeds "
        f"seen in this store{rest}"
    )


def _show_estimates(console: Console, plan: Plan, each: bool) -> None:
    """Print the needs of the missing nodes: a line per stage, with `each` per node, and how they
    are estimated."""
    groups: dict[str, list[NodeEstimate]] = {}
    for node in plan.missing:
        name = node.name if each else node.stage.name
        groups.setdefault(name, []).append(plan.estimates[node.key])
    if not groups:
        return
    groups["all"] = [plan.estimates[node.key] for node in plan.missing]
    table = new_table("to be computed", *COLUMNS, right=COLUMNS, whole=("to be computed", *COLUMNS))
    for name, own in groups.items():
        table.add_row(name if each else f"{name} ({len(own)})", *_cells(own))
    console.print()
    print_whole(console, table)
    needed, widest = disk_needed(plan.missing, plan.estimates)
    at_most = describe_disk(widest, plan.estimates[widest.key])
    console.print(f"the store needs {short(needed)}B of disk, one node at a time ({at_most})")
    for line in assumptions(plan.config, plan.missing, plan.estimates):
        console.print(line, style="dim")


def _cells(own: Sequence[NodeEstimate]) -> list[str]:
    """Return the `COLUMNS` of some nodes: the maximum of sizes held at once, the sum of others."""
    peaks = [each.peak_bytes for each in own if each.peak_bytes is not None]
    hours = [each for each in own if each.gpu_hours is not None]
    unknown = any(each.gpus and each.peak_bytes is None for each in own)
    tokens = sum(each.tokens for each in own)
    host, disk = (max(getattr(each, n) or 0 for each in own) for n in ("host_bytes", "disk_bytes"))
    return [
        "unknown" if unknown else f"{max(peaks) / GIB:.1f}" if peaks else "-",
        str(max(each.gpus for each in own)) if any(each.on_gpu for each in own) else "-",
        short(tokens) if tokens else "-",
        f"{sum(each.gpu_hours or 0 for each in hours):.1f}" if hours else "-",
        f"{sum(each.wall_hours or 0 for each in hours):.1f}" if hours else "-",
        f"{host / GIB:.1f}" if host else "-",
        f"{short(disk)}B" if disk else "-",
    ]
