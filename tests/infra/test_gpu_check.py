"""The check for a machine with a GPU runs on a CPU with tiny shapes, and a failure is a line."""

import zipfile
from pathlib import Path

import pytest

from infra import gpu_check


@pytest.mark.slow
def test_every_check_is_a_line_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "packages.zip"
    zipfile.ZipFile(archive, "w").close()  # the packages of this environment are used
    assert gpu_check.run(archive) == 0
    table = capsys.readouterr().out.splitlines()[1:]
    assert [line[:20].split() for line in table] == [
        ["GPU", "tests", "ok"], ["GRPO", "step", "ok"], ["reward", "ok"]
    ]  # fmt: skip
    assert "s a step" in table[1] and "rewards differ by" in table[2]


def test_a_check_that_fails_is_a_line_and_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "packages.zip"
    zipfile.ZipFile(archive, "w").close()
    monkeypatch.setattr(gpu_check, "checks", lambda _: {"unknown": ["infra.no_such_module"]})
    assert gpu_check.run(archive) == 1
    assert "unknown     FAILED" in capsys.readouterr().out
