"""Whatever a store, a model or a server says, it is shown and cannot control the terminal."""

import ast
import json
import os
import pty
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import terminal
from flows.cli.app import app
from flows.cli.progress import Display
from flows.cli.terminal import new_table
from flows.credentials import _RunRecord
from rlt_core.config import RewardSpec
from rlt_core.store import Store
from tests.sample_store import commit, score_row

HOSTILE = "[bold]x[/] [rank-1] :warning: \x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202eabc\u2066\u200f"
ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
SEEN = "[bold]x[/] [rank-1] :warning: "


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store whose every text is hostile."""
    root = str(tmp_path_factory.mktemp("store"))
    store = Store(root)
    rows = [score_row(1, -1.0, trace_id=HOSTILE, teacher=HOSTILE, question_id=HOSTILE)]
    config = {"reward": RewardSpec().model_dump(), HOSTILE: HOSTILE}
    made = commit(
        store, "trace-scoring[a]", {"scores": rows}, config=config, metrics={HOSTILE: 1.0}
    )
    path = Path(root, "artifacts", "scores", f"{made.ref.key}.json")
    manifest = json.loads(path.read_text())
    changed = {"label": f"trace-scoring[{HOSTILE}]", "profile": HOSTILE, "device": HOSTILE}
    path.write_text(json.dumps(manifest | changed | {"packages": {HOSTILE: HOSTILE}}))
    lease = {"host": HOSTILE, "pid": 1, "name": HOSTILE, "renewed": 4e9, "token": "x"}
    strange = {
        f"refs/tiny/{SEEN}\u202e.json": made.ref.model_dump_json(),
        "refs/tiny/bad.json": HOSTILE,
        "work/0123456789abcdef/lease.json": json.dumps(lease),
        "work/0123456789abcdee/node.txt": HOSTILE,
        f"artifacts/scores/{HOSTILE.replace('/', '')}.json": HOSTILE,
        "artifacts/scores/0123456789abcdef.json": f'{{"{SEEN}\u202e": 1, "label": "\x9b31m"}}',
    }
    for name, text in strange.items():
        file = Path(root, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


COMMANDS = [
    ["artifacts", "list"], ["artifacts", "show", "KEY"], ["artifacts", "lineage", "KEY"],
    ["artifacts", "verify"], ["artifacts", "gc", "--dry-run"], ["artifacts", "list", "--json"],
    ["artifacts", "show", "KEY", "--json"], ["status"], ["status", "--json"], ["report"],
    ["sql", "from scores"], ["sql", "from artifacts"], ["sql", "from refs"],
    ["sql", f"select '{HOSTILE}' as \"{HOSTILE}\""], ["sql", f"select \"{HOSTILE}\" from scores"],
    ["sql", f"select error('{HOSTILE}') from scores"],
    ["reward", "replay"], ["reward", "explain", HOSTILE], ["reward", "explain", "\x1b[2J"],
    ["artifacts", "push", "--to", "OTHER", "--all"], ["plan", "--profile", f"x{HOSTILE}"],
    ["run", f"x{HOSTILE}"], ["artifacts", "show", HOSTILE],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: repr(" ".join(command))[:40])
def test_no_command_passes_a_control_character_on(
    root: str, command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    [key] = (path.name for path in Path(root, "artifacts", "scores").iterdir() if path.is_dir())
    places = {"KEY": key, "OTHER": str(tmp_path / "other")}
    done = CliRunner().invoke(app, [*(places.get(word, word) for word in command), "--store", root])
    shown = f"{done.output}{capfd.readouterr()}"
    exact = "--json" in command  # data: piped as it is
    assert exact or not ACTIVE.search(shown), ACTIVE.search(shown)
    assert done.exception is None or not isinstance(done.exception, ValueError), done.exception


@pytest.mark.parametrize("kind", ["ValueError", "UserError"])
def test_errors_tracebacks_and_log_lines_are_clean_too(kind: str, tmp_path: Path) -> None:
    program = (
        "import logging, sys; from flows.cli.app import main; from rlt_core.store import Store\n"
        "from rlt_core.errors import UserError\n"
        "text = sys.argv.pop()\n"
        f"def fault(*_): logging.getLogger('x').warning('%s', text); raise {kind}(text)\n"
        "Store.manifests = fault; main()"
    )
    command = ["artifacts", "list", "--store", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, HOSTILE], capture_output=True, check=False
    )
    shown = done.stderr.decode()
    assert done.returncode and shown.count("␛]0;owned") >= 2, shown
    assert ("Traceback" in shown) is (kind == "ValueError") and not ACTIVE.search(shown)


def test_square_brackets_are_text_in_bars_and_tables() -> None:
    file = StringIO()
    console = terminal.Console(file=file, force_terminal=True, width=300)
    with Display(1, console) as display:
        display.begin(f"student-sft{SEEN}")
        display.progress(f"student-sft{SEEN}", 1, 2, {SEEN: 1.0})
        display._live.refresh()
        display.end(f"student-sft{SEEN}", SEEN + HOSTILE)
    table = new_table(SEEN, title=SEEN)
    table.add_row(HOSTILE)
    console.print(table)
    shown = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]|\r", "", file.getvalue())  # rich's own
    assert shown.count(SEEN) >= 6 and not ACTIVE.search(shown)


def test_prefect_shows_names_in_brackets() -> None:
    """`prefect deployment run --watch` prints log lines as rich's markup."""
    from rich.console import Console

    record = _RunRecord("x", 20, "f", 1, "%s: committed [0.5, 1]", ("student-sft[rank-1]",), None)
    file = StringIO()
    Console(file=file, width=200).print(record.getMessage())
    assert file.getvalue().replace("\u2060", "") == "student-sft[rank-1]: committed [0.5, 1]\n"


def test_data_are_exact_in_a_pipe_and_harmless_on_a_terminal(root: str) -> None:
    code = """if True:
        import sys; from flows.cli.app import main
        for format in ("csv", "jsonl"):
            print(f"== {format}", flush=True)
            sys.argv[5:] = ["--format", format]
            try:
                main()
            except SystemExit as ended:
                assert not ended.code
    """
    query = "select trace_id as t from scores"
    command = [sys.executable, "-c", code, "sql", query, "--store", root]
    piped = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    as_csv, as_jsonl = re.split("== .*\n", piped)[1:]
    assert HOSTILE in as_csv and json.loads(as_jsonl) == {"t": HOSTILE}
    leader, follower = pty.openpty()
    with subprocess.Popen(command, stdout=follower) as process:
        os.close(follower)
        shown = b""
        while chunk := _read(leader):
            shown += chunk
        assert process.wait() == 0
    os.close(leader)
    text = shown.decode().replace("\r\n", "\n")
    assert text.count(SEEN) == 2 and not ACTIVE.search(text)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""


def test_commands_print_by_one_way() -> None:
    """No module of the command line has a console or a `print` of its own."""
    for file in Path("flows/cli").glob("*.py"):
        tree: Any = ast.parse(file.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        imported = {
            (node.module, each.name)
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            for each in node.names
        }  # fmt: skip
        if file.name != "terminal.py":
            assert "print" not in names or ("flows.cli.terminal", "print") in imported, file
            assert ("rich.console", "Console") not in imported and "input" not in names, file
            assert "rich.markup" not in {module for module, _ in imported}, file
