"""Nodes as runs of their stage's deployment, on the worker pool that `prefect.yaml` names."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelling

from flows.carrier import Outcome, Reporter, Status
from rlt_core.errors import UserError
from tasks import node as node_task
from tasks.spec import NodeSpec

POLL_S = 1.0
PICKED_UP_S = 60.0
"""Seconds after which it is worth a warning that no worker has taken a run."""


class Dispatch:
    """Sends nodes to the worker pool of their stage and follows them there."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._stop = threading.Event()

    def stop(self) -> None:
        """Cancel the runs that were sent, and send no more."""
        self._stop.set()

    def carry_out(self, specs: Sequence[NodeSpec]) -> list[Outcome]:
        """One run for all. The store says what became of each node, the run says why."""
        if self._stop.is_set():
            return [Outcome("stopped", "stopped on request")] * len(specs)
        for spec in specs:
            self._reporter.started(spec.name)
        try:
            child = self._send(specs)
        except ObjectNotFound:
            raise UserError(
                f"no deployment rlt/{specs[0].stage} on this server; "
                "`rlt up` or `prefect deploy --all` makes it"
            ) from None
        state = self._follow(child)
        return [self._outcome(spec, child, state) for spec in specs]

    def _send(self, specs: Sequence[NodeSpec]) -> FlowRun:
        keys = ",".join(spec.key for spec in specs)
        together = keys if len(specs) == 1 else hashlib.sha256(keys.encode()).hexdigest()[:16]
        first = specs[0]
        name = first.name if len(specs) == 1 else f"{len(specs)} {first.stage}"
        child = run_deployment(
            f"rlt/{first.stage}",
            parameters={
                "profile": first.profile,
                "nodes": [spec.model_dump(mode="json") for spec in specs],
            },
            flow_run_name=name,
            timeout=0,
            # A constant key would return the failed run of an earlier try for ever.
            idempotency_key=f"{this_run.id}:{this_run.run_count}:{together}",
        )
        assert isinstance(child, FlowRun)
        get_run_logger().info("%s: sent to pool %s", name, child.work_pool_name)
        return child

    def _follow(self, child: FlowRun) -> State | None:
        """Final state of the run; None if it was told to stop because this one was."""
        sent, warned = time.monotonic(), False
        with get_client(sync_client=True) as client:
            while True:
                state = _state(client, child.id)
                if state and state.is_final():
                    return state
                if self._stop.is_set():
                    client.set_flow_run_state(child.id, Cancelling())
                    return None
                waited = time.monotonic() - sent
                if state and state.is_scheduled() and waited > PICKED_UP_S and not warned:
                    warned = True
                    get_run_logger().warning(
                        "%s: no worker of pool %s has taken it within %.0f s",
                        child.name, child.work_pool_name, PICKED_UP_S,
                    )  # fmt: skip
                self._stop.wait(POLL_S)

    def _outcome(self, spec: NodeSpec, child: FlowRun, state: State | None) -> Outcome:
        manifest = node_task.find(spec)
        if manifest is not None:
            self._reporter.finished(spec.name, manifest)
            return Outcome("done", f"{spec.key} committed")
        status: Status = "failed"
        if state is None or state.is_cancelled() or state.is_cancelling():
            status = "stopped"
        why = (state.message if state else None) or "cancelled with this run"
        outcome = Outcome(status, f"run {child.name}: {why}")
        self._reporter.failed(spec.name, status, outcome.message)
        return outcome


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
