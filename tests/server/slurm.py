"""A real Slurm cluster for tests: a controller and nodes, all on this machine's loopback."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.server.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
NODES = ("n1", "n2")
READY_S = 30.0
END_S = 60.0
PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"

# What a node has is what the recipe asks for, whatever this machine has.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
OverTimeLimit=0
KillWait=30
"""
NODE = """\
NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=12 RealMemory=131072 \
Gres=gpu:1
"""
PARTITION = "PartitionName=all Nodes={nodes} Default=YES State=UP\n"
GPU = "NodeName={name} Name=gpu File=/dev/null\n"


def missing() -> list[str]:
    """Programs of Slurm that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@dataclass(frozen=True)
class Cluster:
    """A running cluster whose files are in a folder."""

    folder: Path

    def run(
        self, *command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """The output of a Slurm command."""
        environment = {**(env or os.environ), "SLURM_CONF": str(self.folder / "slurm.conf")}
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """Jobs that have not ended, an array's one by one."""
        return self.run("squeue", "--noheader", "--array", "--format=%A %T %N").splitlines()

    def end(self) -> None:
        """End all jobs."""
        for signal in ("TERM", "KILL"):
            deadline = time.monotonic() + END_S
            while (left := self.jobs()) and time.monotonic() < deadline:
                for job in left:
                    flags = ["--full", "--signal=KILL"] if signal == "KILL" else []
                    self.run("scancel", *flags, job.split()[0])
                time.sleep(1)

    def logs(self) -> str:
        """The logs of its daemons."""
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}"
            for log in sorted(self.folder.glob("*.log"))
        )


def _configure(folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / "state").mkdir()
    for name in NODES:
        (folder / f"spool-{name}").mkdir()
    config = CONFIG.format(
        host=socket.gethostname(), port=free_port(), folder=folder,
        user=pwd.getpwuid(os.geteuid()).pw_name,
    )  # fmt: skip
    config += "".join(NODE.format(name=name, port=free_port()) for name in NODES)
    (folder / "slurm.conf").write_text(config + PARTITION.format(nodes=",".join(NODES)))
    (folder / "gres.conf").write_text("".join(GPU.format(name=name) for name in NODES))


@contextmanager
def _daemon(folder: Path, name: str, *command: str) -> Iterator[None]:
    """One that stays in the foreground; it ends with the block."""
    program = shutil.which(command[0], path=PATH)
    assert program
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            env={**os.environ, "PATH": PATH},
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def serve(folder: Path) -> Iterator[Cluster]:
    """A cluster of idle nodes; its daemons, and jobs that still run, end with the block."""
    folder.mkdir()
    folder.chmod(0o700)
    _configure(folder)
    config, cluster = str(folder / "slurm.conf"), Cluster(folder)
    munge = [f"--{what}={folder}/munge.{end}" for what, end in (
        ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("seed-file", "seed"),
    )]  # fmt: skip
    with ExitStack() as stack:
        # --force: the socket need not be open to other users.
        stack.enter_context(_daemon(folder, "munged", "munged", "--foreground", "--force", *munge))
        _wait_for((folder / "munge.socket").exists, cluster)
        stack.enter_context(_daemon(folder, "slurmctld", "slurmctld", "-D", "-f", config))
        for name in NODES:
            command = ("slurmd", "-D", "-N", name, "-f", config)
            stack.enter_context(_daemon(folder, f"slurmd-{name}", *command))
        _wait_for(lambda: _idle(cluster), cluster)
        stack.callback(cluster.end)
        yield cluster


def _idle(cluster: Cluster) -> bool:
    try:
        states = cluster.run("sinfo", "--noheader", "--Node", "--format=%T").split()
    except AssertionError:  # the controller does not answer yet
        return False
    return states == ["idle"] * len(NODES)


def _wait_for(what: Callable[[], bool], cluster: Cluster) -> None:
    deadline = time.monotonic() + READY_S
    while not what():
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.2)
