"""Background processes of `rlt up`."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from flows.server.processes import Processes, free_port


@pytest.mark.parametrize("option", ["--port=0", "--port=99999", "--gpu-runs=0"])
def test_a_number_out_of_range_starts_nothing(option: str) -> None:
    done = CliRunner().invoke(app, ["up", option])
    assert done.exit_code == 2 and "Input should be" in done.output


def test_a_start_begins_an_empty_log_and_keeps_the_one_before(tmp_path: Path) -> None:
    processes = Processes(tmp_path / "home")
    for said in ("first", "second", "third"):
        code = f"import time; print('{said}', flush=True); time.sleep(60)"
        processes.start("server", [sys.executable, "-c", code], os.environ)
        while not processes.log("server").read_text():
            time.sleep(0.02)
        processes.stop(["server"], 5)
    texts = [each.read_text() for each in sorted(processes.home.glob("server.log*"))]
    assert texts == ["third\n", "second\n"]


def test_a_process_is_found_although_the_clock_was_set_and_not_by_a_torn_file(
    tmp_path: Path,
) -> None:
    processes = Processes(tmp_path / "home")
    processes.start("server", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
    file = processes.home / "server.pid"
    pid, started = json.loads(file.read_text())
    for text, alive in (
        (json.dumps([pid, started + 1]), True), (json.dumps([pid, started - 60]), False),
        ("", False), (f"[{pid}", False),
    ):  # fmt: skip
        file.write_text(text)
        assert processes.alive("server") == alive, text
    file.write_text(json.dumps([pid, started]))
    processes.stop(["server"], 5)
    assert not processes.alive("server")


def test_a_server_whose_port_another_process_has_is_not_taken_for_ours(tmp_path: Path) -> None:
    processes, port = Processes(tmp_path / "home"), free_port()
    listen = f"""
import socket, time
taken = socket.socket()
while taken.connect_ex(("127.0.0.1", {port})) == 0:
    taken = socket.socket()
ours = socket.create_server(("127.0.0.1", {port}))
time.sleep(60)
"""
    with socket.create_server(("127.0.0.1", port)):
        processes.start("server", [sys.executable, "-c", listen], os.environ)
        assert not processes.listens("server", port) and not processes.listens("s3", port)
    processes.wait("server", lambda: processes.listens("server", port))
    processes.stop(["server"], 5)
