"""Data flows one way: flows → tasks → rlt_core; Prefect and torch stay in their rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"rlt_core": {"rlt_core"}, "tasks": {"tasks", "rlt_core"}}
COMPUTES = (
    "rlt_core/evaluation/", "rlt_core/generation/", "rlt_core/models.py", "rlt_core/scoring/",
    "rlt_core/training/",
)  # fmt: skip
FILES = sorted(
    path for room in ("flows", "tasks", "rlt_core") for path in (ROOT / room).rglob("*.py")
)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_in_their_rooms(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    room = name.split("/")[0]
    for module in _imports(path):
        top = module.split(".")[0]
        if top in ("flows", "tasks", "rlt_core") and room in ROOMS:
            assert top in ROOMS[room], f"{name} imports {module}"
        if top == "prefect":
            assert room == "flows", f"{name} imports prefect"
        if top == "torch":
            assert name.startswith(COMPUTES), f"{name} imports torch"


def test_files_and_functions_are_small() -> None:
    for path in FILES:
        source = path.read_text()
        assert len(source.splitlines()) <= 500, f"{path} is too long"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name} is too long"


@pytest.mark.parametrize(
    "command", [["plan"], ["status"], ["artifacts", "list"], ["sql", "select 1"]]
)
def test_light_commands_import_neither_prefect_nor_torch(
    command: list[str], tmp_path: Path
) -> None:
    program = (
        "import sys; from flows.cli.app import app; "
        "app(sys.argv[1:], standalone_mode=False); "
        "heavy = {'torch', 'prefect', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
