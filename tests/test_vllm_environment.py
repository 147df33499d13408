"""One environment holds vLLM, TRL, lighteval and Prefect: what `make vllm-cpu` installs, or
`.[vllm]` with its constraints on a machine with GPUs."""

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

CONSTRAINTS = Path(__file__).parents[1] / "constraints"
OURS = {"rlt-pipeline", "pip"}
TOGETHER = """
from vllm import LLM
from trl import GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from lighteval.pipeline import Pipeline
import prefect, rlt_core.evaluation.adapter, rlt_core.training.grpo, flows.pipeline
"""


@pytest.fixture(autouse=True)
def vllm() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed; `make vllm-cpu` runs this")


def plain(name: str) -> str:
    """As https://packaging.python.org/en/latest/specifications/name-normalization/ has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_all_are_imported_into_one_process() -> None:
    done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_versions_are_those_of_the_constraints() -> None:
    packages = distributions(path=[sysconfig.get_path("purelib")])  # setuptools brings its own
    installed = {plain(each.metadata["Name"]): each.version.partition("+")[0] for each in packages}
    engine = "vllm" if "vllm" in installed else "vllm-cpu"
    pinned = dict(line.split("==") for line in (CONSTRAINTS / f"{engine}.txt").read_text().split())
    wanted = {plain(name): version for name, version in pinned.items()}
    assert {engine, "trl", "lighteval", "prefect", "torch"} <= installed.keys()
    assert {
        name: version for name, version in installed.items() if wanted.get(name) != version
    }.keys() == OURS
