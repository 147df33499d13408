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
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

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
MODEL = "Qwen/Qwen2.5-7B-Instruct"
LAUNCH = (
    "import runpy, sys; sys.path.append(sys.argv[1]); del sys.argv[:2]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
"""Runs a module with a folder behind the machine's own packages."""


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


def checks(on_gpu: bool) -> dict[str, list[str]]:
    """Return the name of each check -> its module and arguments; the last line that it prints is
    its result."""
    files = [file for file in Path("tests").rglob("test_*.py") if "mark.gpu" in file.read_text()]
    step = [MODEL, "--tokens", "512"]
    tiny = ["tiny", "--questions", "2", "--completions", "4", "--tokens", "16"]
    reward = [MODEL] if on_gpu else ["tiny", "--questions", "2", "--group", "4"]
    return {
        "GPU tests": ["pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *map(str, files)],
        "GRPO step": ["infra.benchmarks.paper_step", *(step if on_gpu else tiny)],
        "reward": ["infra.benchmarks.reward", *reward, "--repeats", "2"],
    }


def run(archive: Path) -> int:
    """Run every check, print the table and return the exit status."""
    import torch

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        # dill, which datasets uses, pickles modules outside of a folder of this name by value.
        packages = f"{folder}/site-packages"
        with zipfile.ZipFile(archive) as wheels:
            wheels.extractall(packages)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        environment = {"CUDA_VISIBLE_DEVICES": "0", **os.environ, **offline}
        for name, command in checks(torch.cuda.is_available()).items():
            try:
                done = subprocess.run(
                    [sys.executable, "-c", LAUNCH, packages, *command],
                    env=environment, capture_output=True, text=True, timeout=TIMEOUT_S,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                lines.append((name, "FAILED", f"did not end within {TIMEOUT_S:.0f} s"))
                continue
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            said = done.stdout.strip() or done.stderr.strip() or "no message"
            lines.append((name, "FAILED" if done.returncode else "ok", said.splitlines()[-1]))
    print(f"torch {version('torch')}, transformers {version('transformers')}")
    for name, state, result in lines:
        print(f"{name:<12}{state:<8}{result}")
    return int(any(state == "FAILED" for _, state, _ in lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("prepare", "run"))
    parser.add_argument("archive", type=Path)
    parser.add_argument("--python", default="3.12", help="Python version of the GPU machine")
    given = parser.parse_args(arguments)
    if given.command == "run":
        return run(given.archive)
    prepare(given.archive, given.python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
