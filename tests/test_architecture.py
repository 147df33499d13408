"""Torch stays in the modules that compute, files stay small, names are unique and plain.

The layers `flows → tasks → rlt_core` are contracts of import-linter in `pyproject.toml`.
"""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

from tests.imports import imported

ROOT = Path(__file__).parent.parent
PACKAGES = ("flows", "tasks", "rlt_core", "infra")
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
COMPUTES = (
    "rlt_core/evaluation/", "rlt_core/generation/", "rlt_core/models.py", "rlt_core/scoring/",
    "rlt_core/training/", "infra/",
)  # fmt: skip
REPLACED = re.compile(
    r"\b(anew|mends?|lest|whoever|furnish(es|ed|ing)|rivals?|feigns?|gravest|carrier|thoughtless"
    r"|carr(y|ies|ied) out|last word|asked to end)\b",
    re.IGNORECASE,
)
"""Words for which the field has terms of its own."""
PROMPT = "rlt_core/config/endpoint.py"
"""Holds a prompt, whose words are part of keys."""
FROZEN = {"RankTest"}
"""Two classes of frozen studies' rules, whose sources are hashed."""


@cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(source) for name, source in FILES.items()}


def test_only_modules_that_compute_import_torch() -> None:
    importing = set()
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{name}: relative import"
                modules = [node.module]
            else:
                continue
            if any(module.split(".")[0] == "torch" for module in modules):
                importing.add(name)
    assert importing, "the test looks at the wrong files"
    assert not [name for name in importing if not name.startswith(COMPUTES)]


def test_files_and_functions_are_small() -> None:
    assert not [name for name, source in FILES.items() if source.count("\n") > 500]
    long = [
        f"{name}: {node.name}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long


def test_no_two_classes_share_a_name() -> None:
    names = Counter(
        node.name
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert names
    assert {name for name, count in names.items() if count > 1} <= FROZEN


def test_words_are_those_of_the_field() -> None:
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
    files = {name: text for name, text in FILES.items() if name != PROMPT}
    texts = files | {path.name: path.read_text("utf-8") for path in pages}
    found = [
        f"{name}:{number}: {match[0]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in REPLACED.finditer(line)
    ]
    assert not found, "\n".join(found)


def test_light_commands_import_neither_prefect_nor_torch(tmp_path: Path) -> None:
    commands = [["plan"], ["status"], ["artifacts", "list"], ["sql", "select 1"]]
    program = (
        "import sys; from flows.cli.app import app\n"
        f"for words in {commands}: app([*words, '--store', sys.argv[1]], standalone_mode=False)"
    )
    assert not imported(program, tmp_path)
