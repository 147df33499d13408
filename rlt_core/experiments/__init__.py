"""What can be run: experiments are functions that return graphs of nodes."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.full_pipeline import full_pipeline
from rlt_core.graph import Node, upstream
from rlt_core.stages import STAGES

EXPERIMENTS: dict[str, Callable[[Config], Node]] = {"full-pipeline": full_pipeline}
"""Name -> a function that returns the node (a report) whose inputs are the graph."""


def targets(name: str, config: Config) -> list[Node]:
    """The nodes of an experiment, or every node of a stage in the full pipeline.

    Raises UserError for an unknown name.
    """
    if name in EXPERIMENTS:
        return [EXPERIMENTS[name](config)]
    if name in STAGES:
        nodes = [node for node in upstream([full_pipeline(config)]) if node.stage.name == name]
        if not nodes:
            raise UserError(f"profile {config.profile} has no {name} node with these settings")
        return nodes
    known = [*EXPERIMENTS, *STAGES]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
    raise UserError(f"unknown target {name!r}; {hint}")
