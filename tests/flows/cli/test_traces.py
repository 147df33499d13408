"""`rlt traces` and `rlt traces export`: their mistakes, and what they import."""

import socket

import pytest
from typer.testing import CliRunner

from flows.cli import traces
from flows.cli.app import app
from rlt_core.errors import UserError
from rlt_core.store import Store
from tests.imports import imported
from tests.sample_store import sample_run


def run(*arguments):
    return CliRunner().invoke(app, ["traces", *map(str, arguments)])


def failure(*arguments):
    """The error's one line."""
    error = run(*arguments).exception
    assert isinstance(error, UserError) and "\n" not in str(error)
    return str(error)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    sample_run(Store(str(folder)), seeds=(0,), ranks=0)
    return folder


def test_mistakes_are_one_line(store, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "choose another" in failure("--port", port, "--no-open", "--store", store)
    assert "choose another" in failure("--port", 70_000, "--no-open", "--store", store)
    assert "no store at" in failure("--store", tmp_path / "none")
    assert "no scored traces" in failure("--store", tmp_path)
    file = tmp_path / "a.html"
    assert "end its name in .html" in failure("export", tmp_path / "a.txt", "--store", store)
    assert "there is no folder" in failure("export", tmp_path / "b" / "a.html", "--store", store)
    assert "nearest: q00" in failure("export", file, "--question", "q0", "--store", store)
    assert "not both" in failure("export", file, "--question", "q001", "--best", 1)
    assert not file.exists()


def test_without_a_port_a_taken_one_is_no_hindrance_and_any_page_can_be_the_first(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(traces, "PORT", taken.getsockname()[1])
        with traces._listen(None) as free:
            assert free.getsockname()[1] != traces.PORT
    page = "/question/a%2Fb?channel=reward"
    assert traces._address(1, "t", page) == (
        "http://127.0.0.1:1/question/a%2Fb?token=t&channel=reward"
    )


def test_export_writes_the_questions_that_differ_most(store, tmp_path):
    file = tmp_path / "a.html"
    done = run("export", file, "--best", 2, "--store", store)
    assert done.exit_code == 0 and "2 questions" in done.output
    assert file.read_text().count("<article>") == 2
    run("export", file, "--question", "q001", "--store", store)
    assert file.read_text().count("<article>") == 1


def test_the_server_is_imported_by_the_command_alone():
    assert not imported("import flows.cli.app")
