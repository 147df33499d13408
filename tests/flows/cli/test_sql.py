"""`rlt sql`: formats, files, stdin, mistakes, the shell's words."""

import csv
import io
import json
import sys

import pyarrow.parquet as pq
import pytest
import typer
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.output import DummyOutput

from flows.cli.sql import FORMATS, ask, mixture, sql
from flows.cli.sql_shell import command, completer, shell
from flows.server.processes import free_port
from flows.server.seaweedfs import S3Access
from rlt_core.errors import UserError
from rlt_core.sql.views import connect, refresh
from rlt_core.store import Store
from tests.flows.conftest import invoke
from tests.imports import imported
from tests.sample_store import commit, sample_run, score_row

LISTS = "select question_id, student_solution_logprobs as l, 'nan'::double as x from scores limit 2"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    sample_run(Store(str(root)), seeds=(0,), ranks=0)
    return str(root)


def run(*arguments, text=None):
    app = typer.Typer()
    app.command()(sql)
    finder = list(sys.meta_path)
    try:
        return invoke(app, *arguments, text=text).stdout
    finally:
        sys.meta_path[:] = finder


@pytest.mark.parametrize(
    ("query", "noted"),
    [
        ("select rank, avg(reward) from scores group by rank", True),
        ("select count(*) from (select * from scores)", True),
        ("select label, avg(reward) from scores group by label", False),
        ("select avg(reward) from scores where run = 'x'", False),
        ("select reward from scores", False),
        ("select avg(metric) from (select 1 as metric)", False),
    ],
)
def test_an_aggregate_over_several_artifacts_is_noted(tmp_path, query, noted):
    store = Store(str(tmp_path))
    for label in ("trace-scoring[a]", "trace-scoring[b]"):
        commit(store, label, {"scores": [score_row(1, -1.0, rank=1)]})
    with connect(store) as connection:
        note = mixture(connection, query)
    assert bool(note) == noted
    assert not noted or "2 artifacts (trace-scoring[a], trace-scoring[b])" in note


def test_a_table_shows_every_row_on_one_line(root):
    query = "select question_id, reward, trace_id from scores order by reward limit 3"
    lines = run(query, "--store", root).splitlines()
    assert [line.split() for line in lines] == [
        ["question_id", "reward", "trace_id"],
        ["q000", "-3", "q000-0"],
        ["q000", "-2.99", "q000-1"],
        ["q001", "-2.9", "q001-0"],
    ]


def test_a_table_is_cut_with_a_note_and_holds_no_escape_sequences(root):
    shown = run("select range from range(500)", "--store", root)
    assert "199\n" in shown and "\n200\n" not in shown.replace(" ", "")
    assert "more than 200 rows" in shown
    shown = run("select chr(27) || '[31mred' || chr(10) || 'line' as a", "--store", root)
    assert "\x1b" not in shown and "␛[31mred⏎line" in shown


def test_every_row_is_written_lists_as_json_and_nan_as_null(root, tmp_path):
    objects = [{"question_id": "q000", "l": [-0.5, -0.25], "x": None}] * 2
    rows = list(csv.DictReader(run(LISTS, "--store", root, "-f", "csv").splitlines()))
    assert [json.loads(row["l"]) for row in rows] == [[-0.5, -0.25]] * 2
    assert json.loads(run(LISTS, "--store", root, "--format", "json")) == objects
    numbers = "select sum(range) as s, 1.5 as d, [2.0] as l from range(3)"  # no strings
    (row,) = json.loads(run(numbers, "--store", root, "-f", "json"))
    assert row == {"s": 3, "d": 1.5, "l": [2]} and type(row["s"]) is int
    lines = run("--store", root, "-f", "jsonl", text=LISTS).splitlines()
    assert list(map(json.loads, lines)) == objects
    many = json.loads(run("select range from range(25000)", "--store", root, "-f", "json"))
    assert [row["range"] for row in many] == list(range(25000))
    empty = {f: run("select 1 as a where false", "--store", root, "-f", f) for f in FORMATS[1:4]}
    assert empty == {"csv": "a\n", "json": "[]\n", "jsonl": ""}
    for suffix in FORMATS[1:]:  # the suffix is the format
        assert run(LISTS, "--store", root, "-o", str(tmp_path / f"rows.{suffix}")) == ""
    assert pq.read_table(tmp_path / "rows.parquet").column("l").to_pylist() == [[-0.5, -0.25]] * 2
    assert json.loads((tmp_path / "rows.json").read_text()) == objects
    assert len(list(csv.reader((tmp_path / "rows.csv").open()))) == 3
    assert (tmp_path / "rows.jsonl").read_text().splitlines() == lines


def test_csv_for_a_spreadsheet_has_no_formula(root, tmp_path):
    texts = ["=1+1", "+x", "-x", "@a", "\t=1", "\r=1", "\uff1d1", "-5", "plain", "it's"]
    rows = ", ".join(f"({number}, '{text.replace(chr(39), chr(39) * 2)}', -1.5, ['=x'])"
                     for number, text in enumerate(texts))  # fmt: skip
    query = f'select b as "=b", c, d from (values {rows}) as t(a, b, c, d) order by a'
    exact = list(csv.reader(io.StringIO(run(query, "--store", root, "-f", "csv"), newline="")))
    assert [row[0] for row in exact] == ["=b", *texts]
    for options in (["-f", "csv"], ["-o", str(tmp_path / "rows.csv")]):
        shown = run(query, "--store", root, "--safe-csv", *options)
        text = shown or (tmp_path / "rows.csv").read_bytes().decode()
        safe = list(csv.reader(io.StringIO(text, newline="")))
        names = [row[0] for row in safe]
        assert names == ["'=b", *(f"'{text}" for text in texts[:7]), *texts[7:]]
        assert [row[1:] for row in safe] == [row[1:] for row in exact]
    with pytest.raises(UserError, match="--safe-csv needs"):
        run(query, "--store", root, "--safe-csv")


def test_a_query_that_fails_leaves_the_output_as_it_was(root, tmp_path):
    output = tmp_path / "rows.csv"
    output.write_text("before")
    with pytest.raises(UserError, match="convert"):
        run("select (range || 'a')::int from range(3)", "--store", root, "-o", str(output))
    assert output.read_text() == "before"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select 1", "--format", "xml"], "unknown format 'xml'"),
        (["select 1", "--output", "rows.xls"], "unknown format 'xls'"),
        (["select 1", "--format", "parquet"], "needs --output"),
        (["select 1; select 2", "--output", "rows.csv"], "one statement"),
        (["select 1", "--output", "/nowhere/rows.csv"], "/nowhere/rows.csv"),
        (["select 1", "--output", "."], "this is a folder"),
        (["selec 1"], "syntax error"),
        (["--output", "rows.csv"], "needs the SQL"),
    ],
)
def test_mistakes_are_one_clear_error(root, arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments, "--store", root)


def test_an_s3_store_that_does_not_answer_is_one_clear_error(monkeypatch):
    access = S3Access(f"http://127.0.0.1:{free_port()}", "an-access-key", "a-secret-key")
    for name, value in access.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        run("select 1", "--store", "s3://bucket/prefix")
    assert "s3://bucket/prefix" in str(caught.value) and "127.0.0.1" in str(caught.value)
    assert "a-secret-key" not in str(caught.value) and "an-access-key" not in str(caught.value)


def test_without_a_terminal_statements_come_from_stdin(root):
    text = "create table t as select 1 as a;\nselect a + 1 as b from t; -- the end\n"
    assert run("--store", root, "-f", "csv", text=text).splitlines()[-2:] == ["b", "2"]


def test_a_query_gives_the_same_on_both_stores(store_root):
    query = "select question_id, reward, student_solution_logprobs as l from scores order by all"
    with pytest.raises(UserError, match="no store at"):
        run(query, "--store", f"{store_root}/typo")
    commit(Store(store_root), "report", {})
    assert json.loads(run(query, "--store", store_root, "-f", "json")) == []
    rows = [score_row(number, -float(number)) for number in (1, 2)]
    commit(Store(store_root), "trace-scoring[a]", {"scores": rows})
    assert json.loads(run(query, "--store", store_root, "-f", "json")) == [
        {"question_id": f"q00{number}", "reward": -number, "l": [-0.5, -0.25]} for number in (1, 2)
    ]
    assert run(query, "--store", store_root).split()[-4:] == ["q002", "-2", "[-0.5,", "-0.25]"]


def test_the_command_needs_neither_torch_nor_prefect_nor_pandas(store_root):
    commit(Store(store_root), "report", {})
    query = f"sql('select count(*) from scores', store=Store({store_root!r}))"
    imports = "from flows.cli.sql import sql; from rlt_core.store import Store"
    assert not imported(f"{imports}; {query}")


# ---------------------------------------------------------------- the shell
def type_into_shell(keys, connection, ask, reread):
    """What the shell prints for these keys; a terminal would send the same, and then be closed."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_bytes(keys.encode(errors="surrogateescape"))
        pipe.close()
        shell(connection, ask, reread)


def test_a_session_in_the_shell_on_both_stores(store_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = Store(store_root)
    count = "select count(*) as n from scores;"
    asked = []
    with connect(store) as connection:

        def answer(text):
            asked.append(text)
            ask(connection, text, "csv", None)
            if len(asked) == 1:  # while the shell is open
                commit(store, "trace-scoring[a]", {"scores": [score_row(1, -1.0)]})

        def reread():
            return refresh(connection, store)

        keys = f"{count}\r{count}\r.refresh\rselect count(*)\ras n\rfrom scores;\r"
        mistakes = "select nothing;\r.nothing\r"
        type_into_shell(f"{keys}{mistakes}.quit\r", connection, answer, reread)
        type_into_shell(f"{chr(27)}[A" * 8 + "\r\x04", connection, answer, reread)
    assert asked[2].split() == ["select", "count(*)", "as", "n", "from", "scores;"]
    shown = capsys.readouterr().out
    numbers = [line for line in shown.splitlines() if line.isdigit()]
    assert numbers == ["0", "0", "1", "1"]
    assert "1 artifacts" in shown
    assert "nothing" in shown and "unknown command .nothing" in shown


@pytest.mark.parametrize(
    ("text", "expected", "unexpected"),
    [
        ("sel", "select", "scores"),
        ("select * from ev", "eval_scores", "scores"),
        ("select rew", "reward", "rank"),
        ("select scores.rew", "scores.reward", "reward"),
        (".ta", ".tables", "table"),
    ],
)
def test_completion_knows_commands_tables_columns_and_sql(root, text, expected, unexpected):
    with connect(Store(root)) as connection:
        found = completer(connection).get_completions(Document(text, len(text)), CompleteEvent())
    words = [one.text for one in found]
    assert expected in words and unexpected not in words


def test_no_key_ends_the_shell(root, tmp_path, monkeypatch):
    """Also not in a search through the history, and not bytes that are no text."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    leave, paste = "\x04", "\x1b[200~"
    keys = [key for key in ANSI_SEQUENCES if len(key) < 4 and key not in (leave, paste)]
    keys += [f"{paste}\x12\x1b[201~", "\udce9", "é"]
    asked = []
    with connect(Store(root)) as connection:
        plain = "".join(f"sel{key}\x07\x03" for key in keys)
        search = "".join(f"{t}\x12{key}se\x13{key}\x07\x03\x03" for key in keys for t in ("", "a"))
        type_into_shell(f"{plain}{search}select 'end';\r", connection, asked.append, int)
    assert asked[-1] == "select 'end';"


def test_the_shell_takes_the_usual_words_and_a_folder_that_cannot_be_written(
    root, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with connect(Store(root)) as connection:
        for leave in ("exit", "quit;", "QUIT", ".exit", "\\q"):
            type_into_shell(f"help\rclear\rtables;\r{leave}\rselect 1;\r", connection, 1, int)
    shown = capsys.readouterr().out
    assert shown.count(".schema TABLE") == 5 and shown.count("eval_scores\n") == 5


def test_dot_commands(capsys):
    command(".schema dropped", int)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "dropped" and shown[1].startswith("  run  varchar  key of the artifact")
    for text, message in ((".tabels", "unknown command"), (".schema x", "no table x")):
        with pytest.raises(UserError, match=message):
            command(text, int)
