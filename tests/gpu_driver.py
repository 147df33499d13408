"""A driver that names GPUs which are not there."""

import os
from pathlib import Path

import pytest


def install(folder: Path, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nvidia-smi` on the path lists so many, of 10 GiB, 11 GiB, …; locks on them lie in the
    folder, too."""
    driver = folder / "bin" / "nvidia-smi"
    driver.parent.mkdir(parents=True)
    lines = "\n".join(f"echo 'GPU {i}: of paper (UUID: GPU-{i:04x})'" for i in range(gpus))
    memory = 'if [ "$1" = -i ]; then echo $((10240 + 1024 * 0x${2#GPU-})); exit; fi'
    driver.write_text(f"#!/bin/sh\n{memory}\n{lines}\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(driver.parent), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RLT_HOME", str(folder / "home"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
