"""Which source a run came from, as far as it can be known."""

import re
from pathlib import Path

import pytest

from rlt_core.checkout import git_commit


def test_a_machine_without_git_runs_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None


def test_the_commit_is_whole() -> None:
    found = git_commit()
    if found is None:
        pytest.skip("not a checkout")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found)
