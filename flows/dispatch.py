"""Nodes as runs of their stage's deployment, on the worker pool that `prefect.yaml` names."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from uuid import UUID, uuid4

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelling

from flows.cores import Cores
from flows.executors import Outcome, Reporter, Status
from rlt_core.errors import Stopped, UserError
from rlt_core.stages import STAGES
from rlt_core.store import Lease, Store
from tasks.stage import NodeSpec

States = list[State | None]
"""None while it is not known."""
Ended = tuple[FlowRun, State | None]

HIGH = "high"
"""The queue that goes first, of every pool."""
POLL_S = 1.0
OTHERS_POLL_S = 5.0
"""Between two looks at a node that another pipeline works on."""
PICKED_UP_S = 60.0
"""Seconds after which it is worth a warning that no worker has taken a run."""


class PoolExecutor:
    """Sends nodes to the worker pool of their stage and follows them there."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._stop = threading.Event()
        self._turns = Cores(1)

    def stop(self) -> None:
        """Cancel the runs that were sent, and send no more."""
        self._stop.set()

    def execute(self, specs: Sequence[NodeSpec], priority: float = 0.0) -> list[Outcome]:
        """One run for all. The store says what became of each node, the run says why.

        A pool takes runs as they were sent, and they are sent one after the other.
        """
        if self._stop.is_set():
            return [Outcome("stopped", "stopped on request")] * len(specs)
        for spec in specs:
            self._reporter.started(spec.name)
        outcomes: dict[str, Outcome] = {}
        held = {spec.key for spec in specs if _holder(spec)}
        if free := [spec for spec in specs if spec.key not in held]:
            outcomes |= self._send_and_follow(free, priority)
        for spec in specs:
            if spec.key in held and not self._left_by_others(spec):
                outcomes |= self._send_and_follow([spec], priority)
            elif spec.key in held:
                outcomes[spec.key] = self._outcome(spec, None, None)
        return [outcomes[spec.key] for spec in specs]

    def _left_by_others(self, spec: NodeSpec) -> bool:
        """Whether another pipeline, which works on the node, commits it; it is waited for here,
        where that keeps no GPU."""
        if lease := _holder(spec):
            get_run_logger().info("%s: %s is working on it", spec.name, lease["host"])
        while _holder(spec) and not self._stop.is_set():
            self._stop.wait(OTHERS_POLL_S)
        return self._stop.is_set() or spec.manifest() is not None

    def _send_and_follow(self, specs: Sequence[NodeSpec], priority: float) -> dict[str, Outcome]:
        """What became of each node, by key."""
        try:
            send = self._shared if _machines(specs[0]) > 1 else self._together
            child, state = send(specs, priority)
        except ObjectNotFound:
            raise UserError(
                f"no deployment rlt/{specs[0].stage} on this server; "
                "`rlt up` or `rlt setup-server` makes it"
            ) from None
        except Stopped as error:
            return {spec.key: Outcome("stopped", str(error)) for spec in specs}
        return {spec.key: self._outcome(spec, child, state) for spec in specs}

    def _together(self, specs: Sequence[NodeSpec], priority: float) -> Ended:
        keys = ",".join(spec.key for spec in specs)
        together = keys if len(specs) == 1 else hashlib.sha256(keys.encode()).hexdigest()[:16]
        name = specs[0].name if len(specs) == 1 else f"{len(specs)} {specs[0].stage}"
        run = self._send(specs, name, together, priority)
        [state] = self._wait([run], lambda states: _is_final(states[0]))
        self._cancel([(run, state)])
        return run, state

    def _shared(self, specs: Sequence[NodeSpec], priority: float) -> Ended:
        """A run for each machine that shares the node. Of shards a lost machine costs one, steps
        end with any machine; else the first run's end is the node's."""
        [spec] = specs
        machines, sent = _machines(spec), uuid4().hex
        steps = STAGES[spec.stage].shared == "steps"
        if steps:
            _require_room(spec, machines)
        with self._assembly(spec) if steps else nullcontext():
            parts = [
                spec.model_copy(update={"machine": machine, "sent": sent})
                for machine in range(machines)
            ]
            runs = [
                self._send([part], part.title, f"{part.key}:{part.machine}", priority)
                for part in parts
            ]
            if steps:
                self._wait(runs, is_assembled)
        decisive = machines if steps else 1
        states = self._wait(
            runs, lambda states: _is_final(states[0]) or any(map(_has_failed, states[:decisive]))
        )
        ended = list(zip(runs, states, strict=True))
        completed = states[0] is not None and states[0].is_completed()
        self._cancel([one for one in ended if not (completed and _has_begun(one[1]))])
        return next((one for one in ended[:decisive] if _has_failed(one[1])), ended[0])

    def _assembly(self, spec: NodeSpec) -> Lease:
        """Nodes whose machines wait for each other are sent one at a time, of whichever pipeline:
        two that had half of a pool each would wait for ever."""

        def waiting(_: object) -> None:
            if self._stop.is_set():
                raise Stopped("stopped on request")

        pool = STAGES[spec.stage].pool
        return Lease(Store(spec.store).files, f"assembly-{pool}", spec.name, waiting)

    def _send(
        self, specs: Sequence[NodeSpec], name: str, together: str, priority: float
    ) -> FlowRun:
        first = specs[0]
        with self._turns.take(1, priority):
            run = run_deployment(
                f"rlt/{first.stage}",
                parameters={
                    "profile": first.profile,
                    "nodes": [spec.model_dump(mode="json") for spec in specs],
                },
                flow_run_name=name,
                work_queue_name=self._queue,
                timeout=0,
                # A constant key would return the failed run of an earlier try for ever.
                idempotency_key=f"{this_run.id}:{this_run.run_count}:{together}",
            )
        assert isinstance(run, FlowRun)
        get_run_logger().info("%s: sent to pool %s", name, run.work_pool_name)
        return run

    @cached_property
    def _queue(self) -> str | None:
        """A pipeline that was sent to the queue `high` sends its nodes there."""
        with get_client(sync_client=True) as client:
            name = client.read_flow_run(UUID(str(this_run.id))).work_queue_name
        return name if name == HIGH else None

    def _wait(self, runs: Sequence[FlowRun], over: Callable[[States], bool]) -> States:
        """States of the runs once it is over, or once this run was told to stop."""
        sent, warned = time.monotonic(), False
        with get_client(sync_client=True) as client:
            while True:
                states = [_state(client, run.id) for run in runs]
                if self._stop.is_set() or over(states):
                    return states
                late = time.monotonic() - sent > PICKED_UP_S and not warned
                for run, state in zip(runs, states, strict=True) if late else ():
                    if state and state.is_scheduled():
                        warned = True
                        get_run_logger().warning(
                            "%s: no worker of pool %s has taken it within %.0f s",
                            run.name, run.work_pool_name, PICKED_UP_S,
                        )  # fmt: skip
                self._stop.wait(POLL_S)

    def _cancel(self, ended: Sequence[Ended]) -> None:
        """Those that have not ended yet."""
        with get_client(sync_client=True) as client:
            for run, state in ended:
                if not _is_final(state):
                    client.set_flow_run_state(run.id, Cancelling())

    def _outcome(self, spec: NodeSpec, child: FlowRun | None, state: State | None) -> Outcome:
        manifest = spec.manifest()
        if manifest is not None:
            self._reporter.finished(spec.name, manifest)
            return Outcome("done", f"{spec.key} committed")
        status: Status = "failed"
        if state is None or not state.is_final() or state.is_cancelled():
            status = "stopped"
        why = (state.message if state else None) or "cancelled with this run"
        outcome = Outcome(status, f"run {child.name}: {why}" if child else why)
        self._reporter.failed(spec.name, status, outcome.message)
        return outcome


def _holder(spec: NodeSpec) -> dict[str, object] | None:
    """Who works on the node right now."""
    return Lease.holder(Store(spec.store).files, spec.key)


def _machines(spec: NodeSpec) -> int:
    return STAGES[spec.stage].machines(spec.resources)


def _require_room(spec: NodeSpec, machines: int) -> None:
    """Raises UserError if the pool has a limit under which machines would wait for ever for one
    that it does not start."""
    with get_client(sync_client=True) as client:
        name = client.read_deployment_by_name(f"rlt/{spec.stage}").work_pool_name
        limit = client.read_work_pool(name).concurrency_limit if name else None
    if limit is not None and limit < machines:
        raise UserError(
            f"pool {name} takes no more than {limit} at a time, and {spec.name} is trained by "
            f"{machines} machines together; `prefect work-pool update {name} --concurrency-limit "
            f"{machines}`, or lower resources.stages.{spec.stage}.machines"
        )


def is_assembled(states: States) -> bool:
    """Whether no machine is waited for any more: all have begun, or one has failed meanwhile."""
    return all(map(_has_begun, states)) or any(map(_has_failed, states))


def _is_final(state: State | None) -> bool:
    return state is not None and state.is_final()


def _has_failed(state: State | None) -> bool:
    return state is not None and state.is_final() and not state.is_completed()


def _has_begun(state: State | None) -> bool:
    return state is not None and (state.is_running() or state.is_final())


def _state(client: SyncPrefectClient, run: UUID) -> State | None:
    """State of a run; None while the server cannot be asked: it may be back in a minute."""
    try:
        return client.read_flow_run(run).state
    except httpx.TransportError:
        return None
    except httpx.HTTPStatusError as error:
        if error.response.status_code < 500:
            raise
        return None
