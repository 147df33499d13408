"""Check on a GPU what was only estimated or run on a CPU, in a quarter of an hour.

    python -m infra.gpu_check prepare packages.zip [--python 3.12]   # here, with a network
    python -m infra.gpu_check run packages.zip                       # there, from this checkout

The machine with the GPU needs torch, transformers and accelerate, and no network: `prepare`
downloads wheels of the other packages for its Python and refuses more than 60 MiB. `run` unpacks
them behind the machine's own packages, runs each check in a process of its own and prints a table;
exit status 1 if one failed. Checks: the tests marked `gpu`; a step of teacher GRPO at Qwen2.5-7B's
shape (`infra.benchmarks.paper_step`) and its peak memory against the estimate of `rlt plan`; the
reward of the same shape against the plain loop (`infra.benchmarks.reward`). Without a GPU it runs
tiny shapes on the CPU, and the tests are skipped.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import NamedTuple

LIMIT_BYTES = 60 << 20
TIMEOUT_S = 270.0
"""Seconds of one check; three fit into a quarter of an hour."""
PACKAGES = (
    "trl", "peft", "datasets", "dill", "multiprocess", "xxhash", "pandas", "python-dateutil", "six",
    "pyarrow", "requests", "urllib3", "charset-normalizer", "certifi", "pydantic", "pydantic-core",
    "annotated-types", "typing-inspection", "pytest", "pluggy", "iniconfig",
)  # fmt: skip
"""Packages that the checks import beside torch, transformers, accelerate and their own
requirements."""
UNUSED = ("/tests/", "/include/", "flight")
"""Parts of file names that nothing here imports; most are in pyarrow."""
TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}  # fmt: skip
"""The shape for a CPU."""


class CheckResult(NamedTuple):
    """A line of the table."""

    check: str
    result: str
    passed: bool


def prepare(archive: Path, python: str) -> None:
    """Download wheels in the versions of this environment and write their files to an archive.

    Raises SystemExit if it is too large to carry.
    """
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_28")]
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(
        archive, "w", zipfile.ZIP_DEFLATED
    ) as packages:  # fmt: skip
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder,
                "--only-binary=:all:", f"--python-version={python}", *platforms,
                *(f"{name}=={version(name)}" for name in PACKAGES),
            ],
            check=True,
        )  # fmt: skip
        for file in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(file) as wheel:
                for name in wheel.namelist():
                    if not any(part in name for part in UNUSED):
                        packages.writestr(name, wheel.read(name))
    size = archive.stat().st_size
    print(f"{archive}: {len(PACKAGES)} packages, {size / 2**20:.1f} MiB")
    if size > LIMIT_BYTES:
        raise SystemExit(f"more than {LIMIT_BYTES >> 20} MiB; remove a package from PACKAGES")


# ---------------------------------------------------------------- checks
def gpu_tests(on_gpu: bool) -> list[CheckResult]:
    """Run the tests that are marked `gpu`."""
    import pytest

    files = [
        str(file) for file in Path("tests").rglob("test_*.py") if "mark.gpu" in file.read_text()
    ]
    with redirect_stdout(StringIO()) as output:
        status = pytest.main(["-m", "gpu", "-p", "no:cacheprovider", *files])
    print(output.getvalue(), file=sys.stderr)
    return [CheckResult("GPU tests", output.getvalue().strip().splitlines()[-1], status == 0)]


def grpo_step(on_gpu: bool) -> list[CheckResult]:
    """Train three steps and compare the peak memory with its estimate."""
    from infra.benchmarks import paper_step
    from rlt_core.estimate.shapes import PUBLISHED

    if on_gpu:
        config = paper_step.settings(4, 16, 512, device="cuda")
        shape = json.loads(PUBLISHED.read_text())[paper_step.MODEL]
    else:
        config, shape = paper_step.settings(2, 4, 16, device="cpu"), TINY
    step = paper_step.measure_step(shape, config)
    lines = [CheckResult("GRPO step", paper_step.describe(config, step), True)]
    estimate = paper_step.estimated_bytes(paper_step.MODEL, config) if on_gpu else None
    if step.peak_bytes is None or estimate is None:
        return [*lines, CheckResult("memory", "not measured on a CPU", True)]
    ratio = step.peak_bytes / estimate
    gib = f"{step.peak_bytes / 2**30:.1f} GiB, estimate {estimate / 2**30:.1f} GiB"
    return [*lines, CheckResult("memory", f"{gib}, ratio {ratio:.2f}", 0.8 <= ratio <= 1.2)]


def reward(on_gpu: bool) -> list[CheckResult]:
    """Compare the reward with the plain loop."""
    from infra.benchmarks import reward as benchmark
    from rlt_core.estimate.shapes import PUBLISHED

    with tempfile.TemporaryDirectory() as folder:
        if on_gpu:
            shape = json.loads(PUBLISHED.read_text())["Qwen/Qwen2.5-7B-Instruct"]
            benchmark.random_model(shape, Path(folder) / "model")
            case = benchmark.model_case(Path(folder) / "model", 16, 512)
        else:
            case = benchmark.tiny_case(2, 4)
        found = benchmark.compare(case, 2)
    tolerance = 0.1 if on_gpu else benchmark.TOLERANCE  # bfloat16, float32
    return [
        CheckResult(
            "reward",
            f"{len(case.items)} completions: plain {found.plain_s:.2f} s, ours {found.ours_s:.2f} "
            f"s, ratio {found.plain_s / found.ours_s:.1f}; differ by {found.gap:.0e}",
            found.gap < tolerance,
        )
    ]


CHECKS: dict[str, Callable[[bool], list[CheckResult]]] = {
    "gpu_tests": gpu_tests, "grpo_step": grpo_step, "reward": reward,
}  # fmt: skip


def check(name: str, packages: str) -> None:
    """Run one check in this process; the last line printed holds its lines as JSON."""
    sys.path.append(packages)
    import torch

    print(f"\n{json.dumps(CHECKS[name](torch.cuda.is_available()))}")


def run(archive: Path) -> int:
    """Run every check, print the table and return the exit status."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        # dill, which datasets uses, pickles modules outside of a folder of this name by value.
        packages = f"{folder}/site-packages"
        with zipfile.ZipFile(archive) as wheels:
            wheels.extractall(packages)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, **offline}
        for name in CHECKS:
            command = [sys.executable, "-m", "infra.gpu_check", "check", name, packages]
            try:
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
                )
            except subprocess.TimeoutExpired:
                lines.append(CheckResult(name, f"did not end within {TIMEOUT_S:.0f} s", False))
                continue
            print(done.stderr, file=sys.stderr)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                lines.append(CheckResult(name, last, False))
            else:
                lines += [CheckResult(*line) for line in json.loads(done.stdout.splitlines()[-1])]
    print(f"torch {version('torch')}, transformers {version('transformers')}")
    for line in lines:
        print(f"{line.check:<12}{'ok' if line.passed else 'FAILED':<8}{line.result}")
    return int(not all(line.passed for line in lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="download the packages")
    preparing.add_argument("archive", type=Path)
    preparing.add_argument("--python", default="3.12", help="Python version of the GPU machine")
    commands.add_parser("run", help="run all checks").add_argument("archive", type=Path)
    one = commands.add_parser("check", help="run one check in this process")
    one.add_argument("name", choices=tuple(CHECKS))
    one.add_argument("packages")
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run(given.archive)
    if given.command == "prepare":
        prepare(given.archive, given.python)
    else:
        check(given.name, given.packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
