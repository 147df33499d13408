"""Nobody loses GPU-hours to a refactor, and no changed output keeps an old key.

`stage_digests.json` holds a digest of each stage's sources. When one changes, decide: if the
stage's output changes for the same config, raise its version in `rlt_core/stages/`; if not (the
golden test below still passes), renew the digests: `make digests`.
"""

import ast
import hashlib
import json
import os
from functools import cache
from pathlib import Path

from rlt_core.stages import STAGES

ROOT = Path(__file__).parent.parent
FILE = Path(__file__).with_name("stage_digests.json")
NOT_THE_METHOD = (
    "rlt_core.config", "rlt_core.progress", "rlt_core.errors", "rlt_core.graph",
    "rlt_core.processes", "rlt_core.rows", "rlt_core.sql.schemas", "rlt_core.stages",
    "rlt_core.store", "tasks.stage",
)  # fmt: skip
"""Modules that store, transport and name results: they have tests of their own and change none."""
NOT_THE_METHOD_PREFIXES = tuple(f"{name}." for name in NOT_THE_METHOD)


def source_of(module: str) -> Path | None:
    base = ROOT / module.replace(".", "/")
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def imports_of(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("rlt_core", "tasks")}


def code_of(tree: ast.Module) -> str:
    """The code without docstrings, comments and layout."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            strings = [
                statement
                for statement in body
                if isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ]
            for statement in strings:
                body.remove(statement)
    return ast.unparse(tree)


@cache
def parsed(path: Path) -> tuple[set[str], str]:
    """The imports and the code of a source file."""
    tree = ast.parse(path.read_text())
    return imports_of(tree), code_of(tree)


def digest(module: str) -> str:
    """Of the stage's body and all that it imports of the method."""
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = source_of(name)
        if path is None or name in seen or f"{name}.".startswith(NOT_THE_METHOD_PREFIXES):
            continue
        imports, seen[name] = parsed(path)
        seen |= {
            str(each.relative_to(ROOT)): each.read_text() for each in path.parent.glob("*.jinja")
        }
        waiting += imports
    content = json.dumps(seen, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def current() -> dict[str, dict[str, object]]:
    return {
        name: {"version": stage.version, "sources": digest(stage.module)}
        for name, stage in STAGES.items()
    }


def test_a_changed_stage_was_decided_on() -> None:
    now = current()
    if os.environ.get("RENEW_DIGESTS"):
        FILE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    recorded = json.loads(FILE.read_text())
    assert recorded.keys() == now.keys()
    changed = [stage for stage in now if recorded[stage] != now[stage]]
    assert not changed, (
        f"the sources of {', '.join(changed)} changed: raise the version in rlt_core/stages if the "
        "output changes for the same config, then run `make digests`"
    )


def test_a_digest_sees_code_and_not_layout() -> None:
    one = ast.parse('def f(x):\n    """Doc."""\n    return x  # comment')
    two = ast.parse("def f(x):\n    return (x)")
    other = ast.parse("def f(x):\n    return -x")
    assert code_of(one) == code_of(two) != code_of(other)
