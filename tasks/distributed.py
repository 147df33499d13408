"""One node in several processes of one machine or of several: torchrun starts them.

Each machine has one owner, the child process that computes the node there, and one torchrun. Every
process runs the stage's body (`tasks.stage.run_body`) on the same node and learns its rank from
torchrun's environment. A pipe connects it with its owner: progress and the outcome come back, the
stop request goes out. A process whose pipe is closed ends, since torchrun puts its processes into
sessions of their own.

Machines that share the steps of a training meet at the first one's torchrun, which keeps the
key-value store of the rendezvous (https://docs.pytorch.org/docs/stable/elastic/run.html) and whose
address must be reachable from the others. It is static, not c10d's, since the first process has to
be on the machine that commits. Machines that share shards need not know of each other.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import Any

from rlt_core import processes
from rlt_core.errors import Stopped, UserError
from rlt_core.progress import Progress
from rlt_core.stages import STAGES
from rlt_core.store import Store
from tasks.stage import NodeSpec, StageContext, context_of, run_body

STOP = "stop"
POLL_S = 0.2
EXIT_S = 10.0
"""Seconds processes have to end once one of them has failed or all pipes are closed."""


class ProcessDied(RuntimeError):
    """A process ended without sending an outcome."""


# ---------------------------------------------------------------- the owner
def run(ctx: StageContext) -> dict[str, float]:
    """Run a node's body in the processes of this machine and return the first process's metrics,
    none on another machine.

    Raises UserError and Stopped as the processes did, RuntimeError with the traceback of one that
    failed or when one died. Leaves no process behind.
    """
    with tempfile.TemporaryDirectory(prefix="rlt-") as folder:
        file, address = Path(folder) / "spec.json", f"{folder}/owner"
        file.write_text(ctx.spec.model_dump_json())
        with connection.Listener(address, "AF_UNIX") as listener:
            owner = _Owner(listener, ctx.progress)
            command = [sys.executable, "-m", "torch.distributed.run", *_rendezvous(ctx, folder),
                       f"--nproc-per-node={ctx.stage.processes(ctx.resources)}",
                       f"--log-dir={folder}", "-m", "tasks.distributed",
                       str(file), str(ctx.out), address]  # fmt: skip
            threads = {"OMP_NUM_THREADS": str(ctx.resources.threads)}
            # Slurm sends SIGTERM to every process of a job, and torchrun would end its own before
            # they receive the owner's stop request and checkpoint.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            try:
                agent = subprocess.Popen(command, env={**os.environ, **threads})
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            try:
                owner.follow(agent)
            finally:
                owner.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(EXIT_S)
                agent.kill()
                agent.wait()
    return owner.result(agent.returncode)


def _rendezvous(ctx: StageContext, folder: str) -> list[str]:
    """Options by which torchrun finds the processes of the other machines.

    On one machine a private file, instead of `--standalone`: that reads pickles from a port which
    all users of the machine reach.
    """
    if ctx.stage.shared != "steps" or ctx.machines == 1:
        return ["--nnodes=1", "--rdzv-backend=c10d", "--rdzv-conf=store_type=file",
                f"--rdzv-endpoint={folder}/rendezvous", "--local-addr=127.0.0.1"]  # fmt: skip
    host, port = _publish_endpoint(ctx) if ctx.machine == 0 else _find_endpoint(ctx)
    return [f"--nnodes={ctx.machines}", f"--node-rank={ctx.machine}",
            f"--master-addr={host}", f"--master-port={port}",
            f"--rdzv-conf=timeout={processes.WAIT.total_seconds():.0f}"]  # fmt: skip


def _endpoint_file(ctx: StageContext) -> str:
    return f"work/{ctx.spec.key}/rendezvous/{ctx.spec.sent}.json"


def _publish_endpoint(ctx: StageContext) -> tuple[str, int]:
    """Write this machine's address and a free port to the node's workspace."""
    with socket.socket() as free, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        free.bind(("", 0))
        host, port = "127.0.0.1", free.getsockname()[1]
        with contextlib.suppress(OSError):  # no network
            probe.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737); nothing is sent
            host = probe.getsockname()[0]
    ctx.store.files.write(_endpoint_file(ctx), json.dumps([host, port]).encode())
    return host, port


def _find_endpoint(ctx: StageContext) -> tuple[str, int]:
    """Wait for the first machine's endpoint. Raises Stopped on request."""
    while (data := ctx.store.files.read(_endpoint_file(ctx))) is None:
        ctx.progress.report(0, 0, {})
        ctx.progress.check()
        time.sleep(POLL_S)
    host, port = json.loads(data)
    return str(host), int(port)


class _Owner:
    """The owner's end of the pipes."""

    def __init__(self, listener: connection.Listener, progress: Progress) -> None:
        self._progress = progress
        self._open: list[connection.Connection[Any, Any]] = []
        self._asked: set[connection.Connection[Any, Any]] = set()
        self._outcomes: dict[connection.Connection[Any, Any], tuple[str, Any]] = {}
        self._deadline = math.inf
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: connection.Listener) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._open.append(listener.accept())

    def follow(self, agent: subprocess.Popen[bytes]) -> None:
        """Pass on progress and the stop request until all processes have ended."""
        while agent.poll() is None or self._open:
            if not self._open:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(POLL_S)
            for ready in connection.wait(list(self._open), POLL_S):
                assert isinstance(ready, connection.Connection)
                self._receive(ready)
            if self._progress.should_stop():
                for pipe in set(self._open) - self._asked:
                    self._asked.add(pipe)
                    with contextlib.suppress(OSError):
                        pipe.send(STOP)
            if time.monotonic() > self._deadline:
                return  # torchrun would still wait for the processes of lost machines

    def _receive(self, pipe: connection.Connection[Any, Any]) -> None:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            self._open.remove(pipe)
            if pipe in self._outcomes:
                return
            kind, value = "died", "one of the processes that shared the work died; the log says why"
        if kind == "progress":
            self._progress.report(*value)
            return
        self._outcomes[pipe] = kind, value
        if kind not in ("result", "stopped"):  # other processes may wait for this one for ever
            self._deadline = min(self._deadline, time.monotonic() + EXIT_S)

    def close(self) -> None:
        """Close all pipes, so that every process ends."""
        while self._open:
            self._open.pop().close()

    def result(self, status: int) -> dict[str, float]:
        """Return the metrics, or raise the error that caused the others."""
        causes_first = {
            "user_error": UserError,
            "stopped": Stopped,
            "failed": RuntimeError,
            "died": ProcessDied,  # often because another failed, by NCCL
            "cut_off": RuntimeError,  # often because another died
        }
        for kind, error in causes_first.items():
            for sent, value in self._outcomes.values():
                if sent == kind:
                    raise error(value)
        results = [value for sent, value in self._outcomes.values() if sent == "result"]
        if status or not results:
            raise ProcessDied(f"torchrun ended with exit status {status}; the log says why")
        return next((metrics for metrics in results if metrics is not None), {})


# ---------------------------------------------------------------- each process
def main(file: str, out: str, address: str) -> None:
    """Run the body on this process's share of a node and send the outcome to its owner."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # vLLM ends its engines by it
    spec = NodeSpec.model_validate_json(Path(file).read_text())
    pipe = connection.Client(address, "AF_UNIX")
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
        processes.take_gpus(spec.resources, STAGES[spec.stage].gpus_of_each(spec.resources))
        processes.join(spec.resources)
        metrics = run_body(context_of(spec, Store(spec.store), Path(out), progress))
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
    """Whether this process lost the others: NCCL and the rendezvous raise a DistError for it, gloo
    a RuntimeError that names its transport."""
    return type(error).__module__ == "torch.distributed" or "gloo/transport" in str(error)


def _leave() -> None:
    """Exit without the teardown of NCCL and vLLM, which may hang or crash."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _listen(pipe: connection.Connection[Any, Any], stop: threading.Event) -> None:
    """Receive the stop request; when the owner is gone, kill this process with all that it started:
    an engine of vLLM does not notice that its parent died and would keep the GPU's memory."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            if pipe.recv() == STOP:
                stop.set()
    if os.getpgid(0) == os.getpid():  # torchrun gives each process a session of its own
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
