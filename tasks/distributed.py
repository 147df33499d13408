"""One node in several processes of this machine: torchrun starts them, this process owns them.

Where several machines share the steps of a training, each has an owner and a torchrun, and these
meet (`tasks.rendezvous`). Where they share shards, the machines need not know of each other.

Every process runs the stage's body (`tasks.stage.run_body`) on the same node and learns its rank
from torchrun's environment. A pipe connects each with its owner: progress and the result come back,
the stop request goes out. A process whose pipe is closed ends, since torchrun puts its processes
into sessions of their own.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlt_core import processes
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from rlt_core.stages import STAGES
from rlt_core.store import Store
from tasks import rendezvous
from tasks.stage import NodeSpec, StageContext, context_of, run_body

STOP = "stop"
POLL_S = 0.2
EXIT_S = 10.0
"""What processes get to end, once one of them has failed or all were let go."""


class Died(RuntimeError):
    """A process ended without a word."""


class _Share(BaseModel):
    """What each process is told."""

    spec: NodeSpec
    out: Path
    address: str
    """Of the owner's socket."""


# ---------------------------------------------------------------- the owner
def run(ctx: StageContext) -> dict[str, float]:
    """Run a node's body in the processes of this machine; returns the metrics that the first of all
    has, none on another machine.

    Raises UserError and Stopped as they did, RuntimeError with the traceback of one that failed or
    when one died. None of them is left.
    """
    with tempfile.TemporaryDirectory(prefix="rlt-") as folder:
        share = _Share(spec=ctx.spec, out=ctx.out, address=f"{folder}/owner")
        file = Path(folder) / "share.json"
        file.write_text(share.model_dump_json())
        with connection.Listener(share.address, "AF_UNIX") as listener:
            owner = _Owner(listener, ctx.progress)
            command = [sys.executable, "-m", "torch.distributed.run", *_meeting(ctx),
                       f"--nproc-per-node={ctx.stage.processes(ctx.resources)}",
                       f"--log-dir={folder}", "-m", "tasks.distributed", str(file)]  # fmt: skip
            threads = {"OMP_NUM_THREADS": str(ctx.resources.threads)}
            with _without_sigterm():
                agent = subprocess.Popen(command, env={**os.environ, **threads})
            try:
                owner.follow(agent)
            finally:
                owner.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(EXIT_S)
                agent.kill()
                agent.wait()
    return owner.result(agent.returncode)


@contextlib.contextmanager
def _without_sigterm() -> Iterator[None]:
    """What is started meanwhile never gets a SIGTERM. Slurm sends one to every process of a ctx,
    and torchrun would end its own before they have heard the owner's wish and checkpointed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _meeting(ctx: StageContext) -> list[str]:
    """How torchrun is to find those of the other machines."""
    if ctx.stage.shared != "steps" or ctx.machines == 1:
        return ["--standalone"]
    first = ctx.machine == 0
    spec, store = ctx.spec, ctx.store
    place = rendezvous.publish(spec, store) if first else rendezvous.find(spec, store, ctx.progress)
    return [f"--nnodes={ctx.machines}", f"--node-rank={ctx.machine}",
            f"--master-addr={place.host}", f"--master-port={place.port}",
            f"--rdzv-conf=timeout={processes.WAIT.total_seconds():.0f}"]  # fmt: skip


class _Owner:
    """The owner's end of the connections."""

    def __init__(self, listener: connection.Listener, progress: Progress) -> None:
        self._progress = progress
        self._open: list[connection.Connection[Any, Any]] = []
        self._told: set[connection.Connection[Any, Any]] = set()
        self._ended: set[connection.Connection[Any, Any]] = set()
        self._words: list[tuple[str, Any]] = []
        self._deadline = math.inf
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: connection.Listener) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._open.append(listener.accept())

    def follow(self, agent: subprocess.Popen[bytes]) -> None:
        """Pass on progress and the wish to stop until all have ended."""
        while agent.poll() is None or self._open:
            if not self._open:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(POLL_S)
            for ready in connection.wait(list(self._open), POLL_S):
                assert isinstance(ready, connection.Connection)
                self._hear(ready)
            if self._progress.should_stop():
                self._tell()
            if time.monotonic() > self._deadline:
                return  # torchrun would still wait for those of lost machines

    def _hear(self, pipe: connection.Connection[Any, Any]) -> None:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            self._open.remove(pipe)
            if pipe in self._ended:
                return
            kind, value = "died", "one of the processes that shared the work died; the log says why"
        if kind == "progress":
            self._progress.report(*value)
            return
        self._ended.add(pipe)
        self._words.append((kind, value))
        if kind not in ("result", "stopped"):  # others may wait for this one for ever
            self._deadline = min(self._deadline, time.monotonic() + EXIT_S)

    def _tell(self) -> None:
        for pipe in self._open:
            if pipe not in self._told:
                self._told.add(pipe)
                with contextlib.suppress(OSError):
                    pipe.send(STOP)

    def close(self) -> None:
        """Whoever still runs ends."""
        while self._open:
            self._open.pop().close()

    def result(self, status: int) -> dict[str, float]:
        """What the processes said at last, the gravest first."""
        gravest = {
            "user_error": UserError,
            "stopped": Stopped,
            "failed": RuntimeError,
            "died": Died,  # often of another's failure, by NCCL
            "cut_off": RuntimeError,  # often by another's death
        }
        for kind, error in gravest.items():
            for said, value in self._words:
                if said == kind:
                    raise error(value)
        results = [value for said, value in self._words if said == "result"]
        if status or not results:
            raise Died(f"torchrun ended with exit status {status}; the log says why")
        return next((metrics for metrics in results if metrics is not None), {})


# ---------------------------------------------------------------- each process
def main(file: Path) -> None:
    """Run the body on this process's share, and say at last what became of it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # by which vLLM ends its own
    share = _Share.model_validate_json(file.read_text())
    pipe = connection.Client(share.address, "AF_UNIX")
    stop, lock = threading.Event(), threading.Lock()
    threading.Thread(target=_listen, args=(pipe, stop), daemon=True).start()

    def send(kind: str, value: object) -> None:
        with lock, contextlib.suppress(OSError):
            pipe.send((kind, value))

    def report(done: int, total: int, metrics: Any) -> None:
        if processes.rank() == 0:
            send("progress", (done, total, dict(metrics)))

    progress = Progress(report, stop.is_set)
    try:
        resources = share.spec.resources
        processes.take_gpus(resources, STAGES[share.spec.stage].gpus_of_each(resources))
        processes.join(resources)
        ctx = context_of(share.spec, Store(share.spec.store), share.out, progress)
        metrics = run_body(ctx)
    except UserError as error:
        send("user_error", str(error))
    except Stopped as error:
        send("stopped", str(error))
    except Exception as error:
        traceback.print_exc()
        send("cut_off" if _is_cut_off(error) else "failed", traceback.format_exc())
    else:
        send("result", metrics if processes.rank() == 0 else None)
    _leave()


def _is_cut_off(error: Exception) -> bool:
    """Whether this process lost the others: NCCL and the rendezvous have errors for it (DistError),
    gloo says so in a RuntimeError."""
    return type(error).__module__ == "torch.distributed" or "gloo/transport" in str(error)


def _leave() -> None:
    """End without the teardown of libraries: that of NCCL and vLLM may hang or crash after all is
    done."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _listen(pipe: connection.Connection[Any, Any], stop: threading.Event) -> None:
    """Hear the wish to stop; end, with all that this process started, when the owner is gone: an
    engine of vLLM does not notice that its parent died, and would keep the GPU's memory."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            if pipe.recv() == STOP:
                stop.set()
    if os.getpgid(0) == os.getpid():  # torchrun gives each process a session of its own
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
