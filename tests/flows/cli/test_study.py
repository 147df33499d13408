"""`rlt study`: what freeze, run and verify show, write and refuse."""

import subprocess
from pathlib import Path

import pytest

from flows.cli.study import app
from rlt_core.errors import UserError
from rlt_core.experiments import targets
from rlt_core.store import Store
from rlt_core.study.freeze import resolve
from tests.flows.conftest import COMMAND, environment, invoke
from tests.imports import imported
from tests.rlt_core.study.made_up_study import STUDY, commit_all

PRIMARY = STUDY.replace('theirs = "dataset"', 'theirs = "dataset"\nprimary = true')


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A study file, not frozen yet."""
    path = tmp_path / "made-up.toml"
    path.write_text(PRIMARY)
    return path


def rlt(*arguments: object, code: int = 0) -> str:
    return invoke(app, *arguments, code=code).output


def test_from_the_file_to_a_verified_bundle(file: Path, tmp_path: Path) -> None:
    place = tmp_path / "store"
    said = rlt("freeze", file, "--store", place)
    assert f"then: rlt study run {file}" in said
    assert "unchanged" in rlt("freeze", file, "--store", place)
    resolved = resolve(file)
    commit_all(resolved, Store(str(place)), targets("full-pipeline", resolved.config))
    said = rlt("run", file, "--store", place)
    assert "beats (primary)" in said and "(pilot)" in said and "RLT traces are better." in said
    bundle = tmp_path / "made-up.bundle"
    assert str(bundle) in said
    verified = rlt("verify", bundle)
    assert "2 verdicts recomputed from the tables: all agree" in verified
    assert "\n".join(verified.splitlines()[:3]) in said, "the same table"

    (bundle / "verdicts.md").write_text("all is well")
    said = rlt("verify", bundle, code=1)
    assert "verdicts.md: altered" in said and "all agree" not in said
    rlt("run", file, "--store", place, "--bundle", bundle)
    rlt("verify", bundle)


def test_mistakes_come_before_the_work(file: Path, tmp_path: Path) -> None:
    place = tmp_path / "store"
    with pytest.raises(UserError, match="is not frozen"):
        rlt("run", file, "--store", place)
    rlt("freeze", file, "--store", place)
    (tmp_path / "made-up.bundle").mkdir()
    (tmp_path / "made-up.bundle" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="this is no bundle"):
        rlt("run", file, "--store", place)
    for folder in (tmp_path / "none", file):
        with pytest.raises(UserError, match="no such folder"):
            rlt("verify", folder)
    assert not place.exists()


def test_verify_imports_neither_prefect_nor_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from flows.cli.app import app; "
        "from rlt_core.errors import UserError\n"
        "try: app(['study', 'verify', sys.argv[1]], standalone_mode=False)\n"
        "except UserError as error: assert 'no whole bundle' in str(error)\n"
        "else: raise AssertionError"
    )
    assert not imported(program, tmp_path) & {"torch", "prefect", "transformers"}


@pytest.mark.slow
def test_a_study_that_really_runs(file: Path, tmp_path: Path, home: Path) -> None:
    def command(*arguments: object) -> str:
        done = subprocess.run(
            [*COMMAND, "study", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment(home),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command("freeze", file, "--store", tmp_path / "store")
    command("run", file, "--store", tmp_path / "store")
    assert "all agree" in command("verify", tmp_path / "made-up.bundle")
