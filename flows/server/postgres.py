"""PostgreSQL under `rlt up`, if it is installed: Prefect's SQLite has one writer at a time.

Its files are in the home folder, made once. It has no port, only a socket that other users cannot
reach.
"""

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

from flows.server.processes import PRIVATE, Processes
from rlt_core.private import private_folder
from tasks.fork_server import LONGEST_ADDRESS

URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
PACKAGED = Path("/usr/lib/postgresql")
"""Where Debian keeps what is not on the PATH, by version."""
CONNECTIONS = 200


class Unusable(Exception):
    """PostgreSQL cannot be used; the message says why."""


def binaries(version: str = "[0-9]*") -> Path | None:
    """Return the folder of initdb and postgres, if PostgreSQL is installed: Debian's of this or the
    newest version, else that on the PATH."""
    packaged = [file.parent for file in PACKAGED.glob(f"{version}/bin/initdb")]
    if packaged:
        return max(packaged, key=lambda folder: float(folder.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def database(processes: Processes) -> tuple[dict[str, str], str]:
    """Start PostgreSQL, unless SQLite is used; return the settings of Prefect's server for it, and
    which database it is. Raises UserError if files of PostgreSQL are there and it does not start.
    """
    from prefect.settings import get_current_settings

    if {"connection_url", "driver"} & get_current_settings().server.database.model_fields_set:
        return {}, "the one that Prefect's settings name"
    folder = processes.home / "postgres"
    if not folder.is_dir():
        try:
            _make(folder)
        except Unusable as reason:
            return {}, f"SQLite ({reason})"
    found = binaries((folder / "data/PG_VERSION").read_text().strip()) or Path()
    if not processes.alive("postgres"):
        command = [
            str(found / "postgres"), "-D", str(folder / "data"), "-k", str(folder),
            "-c", "listen_addresses=", "-c", f"max_connections={CONNECTIONS}",
        ]  # fmt: skip
        processes.start("postgres", command, os.environ, PRIVATE)
    ask = [str(found / "pg_isready"), "-q", "-h", str(folder)]
    processes.wait("postgres", lambda: subprocess.run(ask).returncode == 0)
    url = f"postgresql+asyncpg://prefect@/postgres?host={quote(str(folder))}"
    return {URL: url}, f"PostgreSQL in {folder}"


def _make(folder: Path) -> None:
    """Make the files of a database with the extension that Prefect needs, completely or not at
    all. Raises Unusable."""
    if (folder.parent / "server.log").exists():
        raise Unusable("it has the history of earlier runs")
    if not (found := binaries()):
        raise Unusable("PostgreSQL, which takes many runs at once, is not installed")
    if os.geteuid() == 0:
        raise Unusable("PostgreSQL refuses to run as root")
    if len(os.fsencode(folder)) > LONGEST_ADDRESS - len("/.s.PGSQL.5432"):
        raise Unusable(f"the path {folder} is too long for a socket of PostgreSQL")
    new = folder.with_name("postgres.new")
    shutil.rmtree(new, ignore_errors=True)
    data = str(private_folder(new) / "data")
    try:
        _run([found / "initdb", "-D", data, "-A", "trust", "-U", "prefect", "-E", "UTF8",
              "--no-locale"])  # fmt: skip
        said = _run(
            [found / "postgres", "--single", "-D", data, "postgres"], "create extension pg_trgm"
        )
        if "ERROR" in said:
            raise Unusable(said)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(command: list[Path | str], text: str = "") -> str:
    """Return the last line that a command writes to stderr. Raises Unusable if it fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True)
    except OSError as error:
        raise Unusable(str(error)) from None
    said = " ".join(done.stderr.split())
    if done.returncode:
        raise Unusable(f"{Path(command[0]).name} failed: {said[-200:]}")
    return said
