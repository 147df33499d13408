"""How nodes come to be computed: in children of this process, or in runs on a worker pool."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from flows.cores import Cores
from rlt_core import gpus
from rlt_core.environment import in_one_line
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Metrics
from rlt_core.stages import STAGES
from rlt_core.store import Manifest
from tasks.child_process import ChildFailed, ChildProcesses
from tasks.execute import execute_node
from tasks.stage import NodeSpec

Status = Literal["hit", "done", "failed", "mistake", "stopped", "over budget", "not run"]
THERE: tuple[Status, ...] = ("hit", "done")


@dataclass(frozen=True)
class Outcome:
    """What became of a node."""

    status: Status
    message: str = ""

    @property
    def there(self) -> bool:
        """Whether its artifact is in the store."""
        return self.status in THERE


class Reporter(Protocol):
    """Shows what happens; called from the threads that execute nodes."""

    def started(self, name: str) -> None:
        """A node has begun."""

    def progress(self, name: str, done: int, total: int, metrics: Metrics) -> None:
        """A node has done so much; `total` 0: it waits for another run, which works
        on its key or holds the GPUs."""

    def line(self, name: str, text: str) -> None:
        """The process that computes a node has printed a line."""

    def finished(self, name: str, manifest: Manifest) -> None:
        """A node is committed."""

    def failed(self, name: str, how: str, message: str) -> None:
        """A node failed, was stopped or could not start."""


class Executor(Protocol):
    """Executes nodes."""

    def execute(self, specs: Sequence[NodeSpec], priority: float = 0.0) -> list[Outcome]:
        """Compute nodes of one stage whose inputs are committed; one outcome each. Of those that
        wait the highest priority goes first. Never raises for what a node does."""

    def stop(self) -> None:
        """Ask what runs to checkpoint and end, and start no more."""


class LocalExecutor:
    """Computes nodes in children of this process."""

    def __init__(self, launcher: ChildProcesses, reporter: Reporter, cores: Cores) -> None:
        self._launcher = launcher
        self._reporter = reporter
        self._cores = cores
        here = gpus.here()
        self._gpus = Cores(len(here)) if here else None

    def execute(self, specs: Sequence[NodeSpec], priority: float = 0.0) -> list[Outcome]:
        """One after the other."""
        return [self._one(spec, priority) for spec in specs]

    def stop(self) -> None:
        """Ask the children to checkpoint and end."""
        self._launcher.stop()

    def _one(self, spec: NodeSpec, priority: float) -> Outcome:
        name = spec.name
        try:
            with self._room(spec, priority):
                if not self._launcher.stopping:
                    self._reporter.started(name)
                manifest = self._compute(spec)
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
            self._reporter.finished(name, manifest)
            return Outcome("done", f"{spec.key} committed")
        self._reporter.failed(name, outcome.status, outcome.message)
        return outcome

    def _room(self, spec: NodeSpec, priority: float) -> AbstractContextManager[None]:
        """GPUs of its own for a node that computes there, cores for any other."""
        if self._gpus and spec.on_gpu:
            return self._gpus.take(STAGES[spec.stage].gpus(spec.resources), priority)
        return self._cores.take(spec.cores, priority)

    def _compute(self, spec: NodeSpec) -> Manifest | None:
        """What was committed; None where another run commits."""

        def progress(done: int, total: int, metrics: Metrics) -> None:
            self._reporter.progress(spec.name, done, total, metrics)

        def say(text: str) -> None:
            self._reporter.line(spec.name, text)

        return execute_node(spec, self._launcher, progress, say)
