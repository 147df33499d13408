"""The source tree that this package runs from."""

import subprocess
from collections.abc import Iterable
from pathlib import Path


def git_commit() -> str | None:
    """Commit of the checkout, `-dirty` if files differ from it; None where it is none, or without
    git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*"]
    try:
        done = subprocess.run([*command, "--abbrev=40", "--dirty"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def sources_changed_at(packages: Iterable[str] = ("rlt_core", "tasks")) -> float:
    """Newest change of a file of these packages (seconds since the epoch)."""
    root = Path(__file__).parents[1]
    files = (file for package in packages for file in (root / package).rglob("*.*"))
    return max(file.stat().st_mtime for file in files if file.parent.name != "__pycache__")
