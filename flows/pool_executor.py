"""PoolExecutor computes nodes in runs of a work pool, one pool per kind of machine."""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from uuid import UUID, uuid4

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelled, Cancelling, Pending

from flows.executors import STOPPED, Outcome, Reporter
from flows.schedule import title_of
from rlt_core.errors import UserError
from rlt_core.stages import STAGES
from tasks.stage import NodeSpec

HIGH = "high"
"""The work queue of every pool that goes first."""
POLL_S = 1.0
Ended = tuple[FlowRun, State]


class PoolExecutor:
    """Sends nodes to the work pool of their stage's deployment, and follows the runs there."""

    def __init__(self, reporter: Reporter, experiment: str) -> None:
        self._reporter, self._experiment = reporter, experiment
        self._stop = threading.Event()
        self._sending = threading.Lock()
        """A pool takes runs in the order in which they were sent."""

    def stop(self) -> None:
        """Cancel the runs that were sent, and send no more."""
        self._stop.set()

    def execute(self, specs: Sequence[NodeSpec]) -> list[Outcome]:
        """Compute the nodes in one run: done is what is in the store then."""
        why, outcomes = self._send_and_follow(specs), []
        for spec in specs:
            if manifest := spec.manifest():
                outcomes.append(Outcome("done", f"{spec.key} committed"))
                self._reporter.finished(spec.name, manifest)
            else:
                outcomes.append(why)
                self._reporter.failed(spec.name, why.status, why.message)
        return outcomes

    def _send_and_follow(self, specs: Sequence[NodeSpec]) -> Outcome:
        """Run the nodes on the pool; return the outcome of those that are not committed then."""
        if self._stop.is_set():
            return STOPPED
        try:
            run, state = self._run(specs)
        except ObjectNotFound:
            return Outcome(
                "mistake",
                f"no deployment rlt/{specs[0].stage} on this server; "
                "`rlt up` or `rlt setup-server` makes it",
            )
        except UserError as error:
            return Outcome("mistake", str(error))
        why = state.message or "cancelled with this run"
        stopped = not state.is_final() or state.is_cancelled()
        return Outcome("stopped" if stopped else "failed", f"run {run.name}: {why}")

    def _run(self, specs: Sequence[NodeSpec]) -> Ended:
        """Send a run for the nodes, or one for each machine that shares a node; return the one that
        decides.

        If machines share shards, the first run decides and a lost machine costs one shard. If they
        share steps, the node ends with any of them.
        """
        stage, batches = STAGES[specs[0].stage], [list(specs)]
        machines, deciding = stage.machines(specs[0].resources), 1
        if machines > 1:
            shared = {"sent": uuid4().hex}
            batches = [
                [specs[0].model_copy(update=shared | {"machine": i})] for i in range(machines)
            ]
            if stage.shared == "steps":
                deciding = machines
                _require_pool_limit(specs[0], machines)
        runs = self._send(batches)
        states = self._wait(
            runs, lambda states: states[0].is_final() or any(map(_has_failed, states[:deciding]))
        )
        ended = list(zip(runs, states, strict=True))
        completed = states[0].is_completed()
        self._cancel([one for one in ended if not (completed and _has_begun(one[1]))])
        return next((one for one in ended[:deciding] if _has_failed(one[1])), ended[0])

    def _send(self, batches: Sequence[Sequence[NodeSpec]]) -> list[FlowRun]:
        """Send a run for each batch, and none of another node between them: machines that wait for
        each other would wait for ever where two nodes have half of a pool each."""
        with self._sending:
            return [self._send_one(batch) for batch in batches]

    def _send_one(self, specs: Sequence[NodeSpec]) -> FlowRun:
        first, title = specs[0], title_of(specs)
        run = run_deployment(
            f"rlt/{first.stage}",
            parameters={
                "profile": first.profile,
                "nodes": [spec.model_dump(mode="json") for spec in specs],
            },
            flow_run_name=title,
            work_queue_name=self._queue,
            tags=[self._experiment],
            timeout=0,
            # With a constant key the server would return the failed run of an earlier attempt.
            idempotency_key=f"{this_run.id}:{this_run.run_count}:{first.key}:{first.machine}",
        )
        assert isinstance(run, FlowRun)
        get_run_logger().info("%s: sent to pool %s", title, run.work_pool_name)
        return run

    @cached_property
    def _queue(self) -> str | None:
        """The queue `high` for the nodes of a run that was itself sent there."""
        with get_client(sync_client=True) as client:
            name = client.read_flow_run(UUID(str(this_run.id))).work_queue_name
        return name if name == HIGH else None

    def _wait(self, runs: Sequence[FlowRun], is_over: Callable[[list[State]], bool]) -> list[State]:
        """Wait until it is over or a stop was requested; return the states of the runs."""
        with get_client(sync_client=True) as client:
            while True:
                states = [_state(client, run.id) for run in runs]
                if self._stop.wait(POLL_S) or is_over(states):
                    return states

    def _cancel(self, runs: Sequence[Ended]) -> None:
        """Cancel the runs that have not ended yet. A process that starts while its run is
        Cancelling would leave it so for ever: runs that have not begun are Cancelled at once."""
        with get_client(sync_client=True) as client:
            for run, state in runs:
                if not state.is_final():
                    begun = _has_begun(_state(client, run.id))
                    client.set_flow_run_state(run.id, Cancelling() if begun else Cancelled())


def _require_pool_limit(spec: NodeSpec, machines: int) -> None:
    """Raises UserError if the pool's limit is below the number of machines that wait for each
    other."""
    with get_client(sync_client=True) as client:
        name = client.read_deployment_by_name(f"rlt/{spec.stage}").work_pool_name
        limit = client.read_work_pool(name).concurrency_limit if name else None
    if limit is not None and limit < machines:
        raise UserError(
            f"pool {name} takes no more than {limit} at a time, and {spec.name} is trained by "
            f"{machines} machines together; `prefect work-pool update {name} --concurrency-limit "
            f"{machines}`, or lower resources.stages.{spec.stage}.machines"
        )


# ---------------------------------------------------------------- states of runs
def _has_failed(state: State) -> bool:
    return state.is_final() and not state.is_completed()


def _has_begun(state: State) -> bool:
    return state.is_running() or state.is_final()


def _state(client: SyncPrefectClient, run: UUID) -> State:
    """The state of a run; Pending while the server cannot be asked: it may be back in a minute."""
    try:
        return client.read_flow_run(run).state or Pending()
    except httpx.HTTPError as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500:
            raise
        return Pending()
