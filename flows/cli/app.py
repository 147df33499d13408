"""The `rlt` command. Exit status: 0 success, 1 failure, 2 user error, 130 stopped."""

from __future__ import annotations

import os
import re
import signal
import sys
from itertools import pairwise
from pathlib import Path

import typer

from flows.cli import artifacts, bench, export, plan, reward, run, server, sql, study, traces
from flows.cli.config import config
from flows.cli.doctor import doctor
from flows.cli.fetch import fetch
from flows.cli.init import init
from flows.cli.report import report
from flows.cli.teach import teach
from flows.cli.terminal import clean_output, print
from flows.server.local import current
from rlt_core import __version__
from rlt_core.environment import exit_in_one_line, require_environment
from rlt_core.errors import UserError

app = typer.Typer(
    name="rlt",
    help="Reinforcement-Learned Teachers: the paper as a pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    run.run, teach, plan.plan, config, init, run.status, doctor, report, sql.sql, reward.score,
    fetch, server.up, server.down, server.setup_server, server.worker,
):  # fmt: skip
    app.command()(command)
app.command("furnish", hidden=True)(server.setup_server)
for group in (artifacts, bench, reward, traces, export, study):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2])


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True),
) -> None:
    pass


def _use_store_of_up() -> None:
    """Let commands use the store of a running `rlt up` if no other store is named."""
    named = "RLT_STORE" in os.environ or any(word.startswith("--store") for word in sys.argv)
    if named or {"up", "down"} & set(sys.argv[1:2]):
        return
    running = current()
    if running:
        os.environ["RLT_STORE"] = running.store
        os.environ.update(running.access())


def _require_values(words: list[str]) -> None:
    """Raise UserError for an empty argument, as an unset variable leaves one: it would be taken for
    the default, or for the working directory."""
    for before, word in pairwise(words):
        if not word or re.fullmatch(r"--[\w-]+=", word):
            raise UserError(f"nothing follows {word or before}; give a value, or leave it out")


def main() -> None:
    clean_output()
    with exit_in_one_line(Path(".")):
        require_environment()
        _require_values(["rlt", *sys.argv[1:]])
        before = signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
        _use_store_of_up()
        try:
            typer.main.get_command(app)()  # not app(), which replaces our excepthook
        finally:
            signal.signal(signal.SIGINT, before)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
