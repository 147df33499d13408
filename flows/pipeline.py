"""The loop of a run: plan → a thread per batch of nodes, each after its inputs → outcomes."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from flows.executors import Executor, Outcome, Reporter
from flows.planning import Plan
from flows.schedule import Budget, title_of
from tasks.stage import NodeSpec

NOT_RUN = Outcome("not run")
Outcomes = dict[str, Outcome]
Work = Callable[[], Outcomes]


def plain(title: str, work: Work) -> Work:
    """A batch of this title as it runs without a Prefect server; on one it is a task."""
    return work


def run_plan(
    plan: Plan,
    batches: Sequence[Sequence[NodeSpec]],
    executor: Executor,
    reporter: Reporter,
    as_task: Callable[[str, Work], Work] = plain,
) -> Outcomes:
    """Compute the plan's missing nodes, name what is committed, and return the outcomes of all
    nodes by name."""
    plan.save_config()
    outcomes = {item.node.key: Outcome("hit") for item in plan.nodes if item.hit}
    limit = plan.budget_gpu_hours
    budget = None if limit is None else Budget(limit, plan.estimates)
    outcomes |= run_batches(batches, executor, reporter, budget, as_task)
    plan.name_artifacts(key for key, outcome in outcomes.items() if outcome.is_committed)
    return {item.node.name: outcomes[item.node.key] for item in plan.nodes}


def run_batches(
    batches: Sequence[Sequence[NodeSpec]],
    executor: Executor,
    reporter: Reporter,
    budget: Budget | None = None,
    as_task: Callable[[str, Work], Work] = plain,
    at_once: int | None = None,
) -> Outcomes:
    """Run each batch after the batches that it reads, inputs first, by default all side by side;
    return the nodes' outcomes by key. A termination signal stops the executor, and is raised."""
    names = {spec.key: spec.name for batch in batches for spec in batch}
    run = _Run(executor, reporter, budget, names, dict.fromkeys(names, NOT_RUN))

    def run_after(parents: Iterable[Future[None]], work: Work) -> None:
        wait(parents)
        work()

    futures: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(at_once or max(1, len(batches))) as threads:
        for batch in batches:
            reads = {ref.key for spec in batch for ref in spec.inputs.values()}
            parents = {futures[key] for key in reads if key in futures}
            work = as_task(title_of(batch), partial(run.compute, batch))
            future = threads.submit(run_after, parents, work)
            futures |= {spec.key: future for spec in batch}
        _wait_or_stop(set(futures.values()), executor)
    for future in futures.values():
        future.result()
    return run.outcomes


@dataclass(frozen=True)
class _Run:
    executor: Executor
    reporter: Reporter
    budget: Budget | None
    names: dict[str, str]
    outcomes: Outcomes
    """By key, like the names."""

    def compute(self, specs: Sequence[NodeSpec]) -> Outcomes:
        """Compute a batch whose inputs were tried; return the outcomes by name."""
        refused = {spec.key: why for spec in specs if (why := self._refusal(spec))}
        ready = [spec for spec in specs if spec.key not in refused]
        unreported = [spec for spec in specs if spec.key in refused]
        self.outcomes.update(refused)
        if ready:
            try:
                found = self.executor.execute(ready)
            except Exception as error:  # of the server or the store, between the nodes
                found = [Outcome("failed", f"{type(error).__name__}: {error}")] * len(ready)
                unreported += ready
            self.outcomes.update(zip((spec.key for spec in ready), found, strict=True))
        for spec in unreported:
            why = self.outcomes[spec.key]
            self.reporter.failed(spec.name, why.status, why.message)
        if self.budget:
            for spec in ready:
                manifest = spec.manifest()
                self.budget.settle(spec.key, manifest.gpu_seconds if manifest else None)
        return {spec.name: self.outcomes[spec.key] for spec in specs}

    def _refusal(self, spec: NodeSpec) -> Outcome | None:
        """Why a node cannot run, if so."""
        reads = [ref.key for ref in spec.inputs.values() if ref.key in self.names]
        if missing := [self.names[key] for key in reads if not self.outcomes[key].is_committed]:
            return Outcome("not run", f"it reads {', '.join(missing)}")
        if self.budget and (reason := self.budget.admit(spec.key)):
            return Outcome("over budget", reason)
        return None


def _wait_or_stop(futures: Iterable[Future[None]], executor: Executor) -> None:
    """Wait for all batches; on a termination signal stop the executor, go on waiting, and raise the
    signal at the end. Slurm and a worker may both send one, so a second one changes nothing."""
    signal: BaseException | None = None
    done = False
    while not done:
        try:
            wait(futures)
            done = True
        except BaseException as received:
            signal = received
            executor.stop()
    if signal:
        raise signal
