"""The experiments: functions from a config to a graph of nodes."""

from collections.abc import Callable
from contextlib import suppress

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.bench_teachers import bench_teachers
from rlt_core.experiments.compare_traces import compare_traces
from rlt_core.experiments.countdown import countdown
from rlt_core.experiments.full_pipeline import full_pipeline
from rlt_core.experiments.rank_ablation import rank_ablation
from rlt_core.experiments.reward_ablation import reward_ablation
from rlt_core.experiments.table_1 import table_1
from rlt_core.experiments.table_2 import table_2
from rlt_core.experiments.teach import teach
from rlt_core.extensions import WithEntryPoints
from rlt_core.graph import Node, by_name, upstream
from rlt_core.names import nearest
from rlt_core.stages import STAGES

PAPER: dict[str, Callable[[Config], Node]] = {
    "table-1": table_1,
    "table-2": table_2,
    "countdown": countdown,
    "rank-ablation": rank_ablation,
    "compare-traces": compare_traces,
    "reward-ablation": reward_ablation,
}
"""The paper's experiments: name -> a function that returns a report, whose inputs are the graph."""
EXPERIMENTS = WithEntryPoints(
    "rlt.experiments",
    {"full-pipeline": full_pipeline, **PAPER, "teach": teach, "bench-teachers": bench_teachers},
)
"""All experiments, including those of installed packages."""
ALL = "all"
"""The union of the paper's experiments: what they share runs once."""


def require_target(name: str) -> None:
    """Raise UserError for a name that is neither an experiment nor a stage."""
    known = [*EXPERIMENTS, ALL, *STAGES]
    if name not in known:
        raise UserError(f"unknown target {name!r}; {nearest(name, known)}")


def targets(name: str, config: Config) -> list[Node]:
    """Return the nodes of an experiment or of all, or every node of a stage in the full pipeline.

    Raises UserError for an unknown name, and where the config lacks what an experiment needs.
    """
    require_target(name)
    if name == ALL:
        reports = [experiment(config) for experiment in PAPER.values()]
        by_name(upstream(reports))
        return reports
    if name in EXPERIMENTS:
        return [EXPERIMENTS[name](config)]
    if nodes := [node for node in upstream([full_pipeline(config)]) if node.stage.name == name]:
        return nodes
    having = []
    for experiment in EXPERIMENTS:
        with suppress(UserError):
            if any(node.stage.name == name for node in upstream([EXPERIMENTS[experiment](config)])):
                having.append(experiment)
    hint = f"name an experiment that has: {', '.join(having)}" if having else "nor has another"
    raise UserError(
        f"the full pipeline of {config.profile} has no {name} node with these settings; {hint}"
    )


def nodes_of_stage(name: str, config: Config) -> list[Node]:
    """Return every node of a stage in the experiments that the config allows; nodes of the full
    pipeline come first."""
    reports = [full_pipeline(config)]
    for experiment in list(EXPERIMENTS)[1:]:
        with suppress(UserError):
            reports.append(EXPERIMENTS[experiment](config))
    return [node for node in upstream(reports) if node.stage.name == name]
