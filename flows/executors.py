"""Executors compute nodes: in child processes of this machine, or in runs of a work pool."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from flows.schedule import Slots
from rlt_core import gpus
from rlt_core.environment import in_one_line
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Metrics
from rlt_core.stages import STAGES
from rlt_core.store import Manifest
from tasks.child_process import ChildFailed, ChildProcesses
from tasks.execute import execute_node
from tasks.stage import NodeSpec


@dataclass(frozen=True)
class Outcome:
    """The outcome of a node."""

    status: Literal["hit", "done", "failed", "mistake", "stopped", "over budget", "not run"]
    message: str = ""

    @property
    def is_committed(self) -> bool:
        return self.status in ("hit", "done")


STOPPED = Outcome("stopped", "stopped on request")


class Reporter(Protocol):
    """Shows outcomes. Called from the threads that execute nodes."""

    def finished(self, name: str, manifest: Manifest) -> None:
        """A node is committed."""

    def failed(self, name: str, how: str, message: str) -> None:
        """A node failed, was stopped or could not start."""


class ProgressReporter(Reporter, Protocol):
    """Shows also what happens inside a node."""

    def started(self, name: str) -> None:
        """A node starts."""

    def progress(self, name: str, done: int, total: int, metrics: Metrics) -> None:
        """A node has done `done` of `total` units; `total` 0: it waits for another run, which
        computes the same key or holds the GPUs."""

    def line(self, name: str, text: str) -> None:
        """The process that computes a node has printed a line."""


class Executor(Protocol):
    """Computes nodes whose inputs are committed."""

    def execute(self, specs: Sequence[NodeSpec]) -> list[Outcome]:
        """Compute nodes of one stage and return an outcome for each. A node's failure is an
        outcome, never raised."""

    def stop(self) -> None:
        """Request running nodes to checkpoint and end, and start no more."""


class LocalExecutor:
    """Computes nodes in child processes, side by side while there are cores and GPUs."""

    def __init__(self, children: ChildProcesses, reporter: ProgressReporter, cores: int) -> None:
        self._children, self._reporter = children, reporter
        self._cores = Slots(cores)
        self._gpus = Slots(len(found)) if (found := gpus.here()) else None

    def execute(self, specs: Sequence[NodeSpec]) -> list[Outcome]:
        return [self._execute_one(spec) for spec in specs]

    def stop(self) -> None:
        self._children.stop()

    def _execute_one(self, spec: NodeSpec) -> Outcome:
        progress = partial(self._reporter.progress, spec.name)
        line = partial(self._reporter.line, spec.name)
        slots = self._cores.take(spec.cores)
        if self._gpus and spec.on_gpu:
            slots = self._gpus.take(STAGES[spec.stage].gpus(spec.resources))
        try:
            with slots:
                if not self._children.stopping:
                    self._reporter.started(spec.name)
                manifest = execute_node(spec, self._children, progress, line)
        except Stopped as error:
            outcome = Outcome("stopped", str(error))
        except UserError as error:
            outcome = Outcome("mistake", str(error))
        except ChildFailed as error:
            outcome = Outcome("failed", str(error))
        except OSError as error:
            outcome = Outcome("failed", in_one_line(error, Path(spec.store)) or str(error))
        else:
            if manifest is None:
                return Outcome("done", f"shared the work on {spec.key}")
            self._reporter.finished(spec.name, manifest)
            return Outcome("done", f"{spec.key} committed")
        self._reporter.failed(spec.name, outcome.status, outcome.message)
        return outcome
