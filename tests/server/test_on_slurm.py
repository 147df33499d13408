"""`infra/slurm/worker.sbatch` as it is, on a real Slurm cluster of two nodes and a real server."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus

from flows.server.processes import MARK, Processes
from rlt_core.graph import Node
from rlt_core.store import Lease
from tests.server import slurm
from tests.server.conftest import ROOT, Server, new_server
from tests.server.test_faults import SHORT, checkpoints, nodes, retry, wait_for
from tests.server.test_machines_on_server import SHARED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm.missing()), reason=f"Slurm is not installed: no {', '.join(slurm.missing())}"
    ),
]
RECIPE = ROOT / "infra" / "slurm" / "worker.sbatch"
ENDLESS = ["base_model.steps=1000000", "resources.checkpoint_every_steps=25"]
PATIENCE_S = 1800.0
"""Imports of every run take long where other tests keep the cores busy."""
AT_LAST = re.compile(r"stopped after step (\d+) of 1000000")


@dataclass
class Allocations:
    """Two workers in allocations of Slurm, beside a server with a worker of the pool `cpu`."""

    server: Server
    cluster: slurm.Cluster
    folder: Path
    """Where `sbatch` was called."""

    def log(self, job: str) -> str:
        return (self.folder / f"rlt-gpu-{job}.log").read_text()

    def job_of(self, run: UUID) -> str | None:
        """The allocation whose worker has taken the run."""
        for log in self.folder.glob("rlt-gpu-*.log"):
            name, text = log.stem.removeprefix("rlt-gpu-"), log.read_text()
            tried = f"Worker 'slurm-{name}' submitting flow run '{run}'" in text
            late = f"Aborted submission of flow run '{run}'" in text
            if tried and not late:
                return name
        return None

    def online(self) -> set[str]:
        """Names of the workers of the pool `gpu`."""
        online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
        with self.server.client() as client:
            found = client.read_workers_for_work_pool("gpu", worker_filter=online)
        return {each.name for each in found if each.name.startswith("slurm-")}

    def story(self) -> str:
        """The logs of all of them."""
        jobs = "\n".join(log.read_text()[-5000:] for log in self.folder.glob("rlt-gpu-*.log"))
        return f"{self.server.logs()}\n{self.cluster.logs()}\n{jobs}"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Allocations]:
    folder = tmp_path_factory.mktemp("slurm")
    server = new_server(folder)
    with slurm.serve(folder / "cluster") as cluster:
        try:
            server.up()
            Processes(server.home).stop(["worker-gpu"], 30)
            environment = {
                **server.environment,
                **server.login,
                "RLT_STORE": str(server.store),
                "RLT_VENV": sys.prefix,
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                MARK: str(server.home),
            }
            cluster.run("sbatch", "--array=1-2", str(RECIPE), cwd=folder, env=environment)
            made = Allocations(server, cluster, folder)
            wait_for(lambda: len(made.online()) == 2, PATIENCE_S)
            yield made
        finally:
            cluster.end()
            server.rlt("down")
    assert server.processes() == []


def test_workers_in_an_array_have_their_own_node_name_and_log(here: Allocations) -> None:
    jobs = [job.split() for job in here.cluster.jobs()]
    assert {(state, node) for _, state, node in jobs} == {("RUNNING", "n1"), ("RUNNING", "n2")}
    assert here.online() == {f"slurm-{job}" for job, _, _ in jobs}
    for job, _, _ in jobs:
        wait_for(lambda job=job: "started!" in here.log(job), 60)
    ours = [process.environ() for process in here.server.processes()]
    given = [one for one in ours if "SLURM_JOB_ID" in one]
    assert {one["SLURM_JOB_ID"] for one in given} == {job for job, _, _ in jobs}
    assert {one["CUDA_VISIBLE_DEVICES"] for one in given} == {"0"}, "the GPU that Slurm gave it"
    assert {one["OMP_NUM_THREADS"] for one in given} == {"12"}


def test_a_pipeline_runs_its_nodes_on_workers_of_slurm(here: Allocations) -> None:
    run = here.server.finish(here.server.start("full-pipeline", profile="smoke"), PATIENCE_S)
    assert run.state and run.state.name == "Completed", here.story()
    graph = nodes("full-pipeline", []).values()
    there = here.server.open_store().manifests_of(node.ref for node in graph)
    assert set(there) == {node.key for node in graph}
    children = here.server.children(run.id)
    on_gpus = {child.id for child in children if child.work_pool_name == "gpu"}
    assert len(on_gpus) >= len({node.stage.name for node in graph if node.stage.pool == "gpu"})
    assert {here.job_of(child) is not None for child in on_gpus} == {True}


def test_two_allocations_share_a_node(here: Allocations) -> None:
    run = here.server.finish(here.server.start(SHORT, profile="smoke", set=SHARED), PATIENCE_S)
    assert run.state and run.state.is_completed(), here.story()
    children = {child.name: child.id for child in here.server.children(run.id)}
    jobs = [here.job_of(children[f"teacher-sft@0 machine {number} of 2"]) for number in (1, 2)]
    assert None not in jobs and len(set(jobs)) == 2


def steps(here: Allocations, node: Node) -> list[int]:
    """Those after which the node's checkpoints were made."""
    return sorted(int(file.parent.name) for file in checkpoints(here.server, node))


def at_last(here: Allocations, job: str) -> int:
    """The step after which the node stopped, once the allocation is over."""
    wait_for(lambda: job not in " ".join(here.cluster.jobs()).split(), 150)
    found = AT_LAST.findall(here.log(job))
    assert found, here.story()
    return int(found[-1])


def test_a_node_goes_on_from_where_its_allocation_ended(here: Allocations) -> None:
    """Twice: two minutes before the time is over, of which Slurm tells the worker alone; and by
    `scancel`, which ends every process of the job."""
    server, cluster = here.server, here.cluster
    [base_model] = [node for name, node in nodes(SHORT, ENDLESS).items() if name == "base-model"]
    run = server.start(SHORT, profile="smoke", set=ENDLESS)

    def computing(after: int) -> str:
        """The allocation that computes, once it has left a checkpoint of its own."""
        wait_for(lambda: [step for step in steps(here, base_model) if step > after], PATIENCE_S)
        newest = max(server.children(run), key=lambda child: child.created)
        job = here.job_of(newest.id)
        assert job
        return job

    first = computing(after=50)
    shown = cluster.run("squeue", "--noheader", "--job", first, "--format=%M")
    left = shown.split()[0].split(":")  # an array's job may be shown with the others of it
    minutes = int(left[-2]) + 60 * int(left[-3] if len(left) > 2 else 0)
    cluster.run("scontrol", "update", f"JobId={first}", f"TimeLimit={minutes + 2}")
    ended = server.finish(run, 180)
    assert ended.state and ended.state.is_failed(), here.story()
    stopped = at_last(here, first)
    assert steps(here, base_model)[-1] == stopped
    assert Lease.read_all(server.open_store().files) == ({}, {})
    assert "DUE TO TIME LIMIT" not in here.log(first), "it ended by itself"

    retry(server, run)
    seen: set[int] = set()

    def went_on() -> bool:
        seen.update(steps(here, base_model))
        return max(seen) > stopped

    wait_for(went_on, PATIENCE_S)
    assert min(seen - {stopped}) > stopped - 25, f"{sorted(seen)}: it started again"
    second = computing(after=stopped)
    assert second != first
    cluster.run("scancel", second)
    again = at_last(here, second)
    assert steps(here, base_model)[-1] == again > stopped
    ended = server.finish(run, 180)
    assert ended.state and ended.state.is_failed(), here.story()
    assert "termination signal" in str(ended.state.message)
