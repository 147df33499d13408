"""What can be run: experiments are functions that return graphs of nodes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.compare_traces import compare_traces
from rlt_core.experiments.countdown import countdown
from rlt_core.experiments.full_pipeline import full_pipeline
from rlt_core.experiments.rank_ablation import rank_ablation
from rlt_core.experiments.reward_ablation import reward_ablation
from rlt_core.experiments.table_1 import table_1
from rlt_core.experiments.table_2 import table_2
from rlt_core.graph import Node, upstream
from rlt_core.stages import STAGES

PAPER: dict[str, Callable[[Config], Node]] = {
    "table-1": table_1,
    "table-2": table_2,
    "countdown": countdown,
    "rank-ablation": rank_ablation,
    "compare-traces": compare_traces,
    "reward-ablation": reward_ablation,
}
"""The paper's experiments: name -> a function that returns the node (a report) whose inputs are
the graph."""
EXPERIMENTS: dict[str, Callable[[Config], Node]] = {"full-pipeline": full_pipeline, **PAPER}
ALL = "all"
"""The union of the paper's experiments: what they share runs once."""


def require_target(name: str) -> None:
    """Raises UserError for a name that is neither an experiment nor a stage."""
    known = [*EXPERIMENTS, ALL, *STAGES]
    if name in known:
        return
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
    raise UserError(f"unknown target {name!r}; {hint}")


def targets(name: str, config: Config) -> list[Node]:
    """The nodes of an experiment or of all, or every node of a stage in the full pipeline.

    Raises UserError for an unknown name, and where the config lacks what an experiment needs.
    """
    require_target(name)
    if name == ALL:
        return [experiment(config) for experiment in PAPER.values()]
    if name in EXPERIMENTS:
        return [EXPERIMENTS[name](config)]
    if nodes := [node for node in upstream([full_pipeline(config)]) if node.stage.name == name]:
        return nodes
    others = [each for each in PAPER if _has(each, name, config)]
    hint = f"; the experiment `{others[0]}` has" if others else " with these settings"
    raise UserError(f"the full pipeline of {config.profile} has no {name} node{hint}")


def _has(experiment: str, stage: str, config: Config) -> bool:
    """Whether an experiment that the config allows has nodes of a stage."""
    try:
        return any(node.stage.name == stage for node in upstream([PAPER[experiment](config)]))
    except UserError:  # it needs what this config leaves empty
        return False


def nodes_of_stage(name: str, config: Config) -> list[Node]:
    """Every node of a stage in the full pipeline and in the experiments that the config allows,
    those of the full pipeline first."""
    reports = [full_pipeline(config)]
    for experiment in PAPER.values():
        with suppress(UserError):  # it needs what this config leaves empty
            reports.append(experiment(config))
    return [node for node in upstream(reports) if node.stage.name == name]
