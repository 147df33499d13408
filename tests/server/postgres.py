"""A real PostgreSQL server on loopback for tests."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.server.processes import free_port

USER = "postgres"
PACKAGED = Path("/usr/lib/postgresql")
"""Where Debian keeps what is not on the PATH."""


def binaries() -> Path | None:
    """Folder of initdb and pg_ctl, if PostgreSQL is installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    packaged = sorted(PACKAGED.glob("*/bin/initdb"))
    return packaged[-1].parent if packaged else None


def _run(command: list[str]) -> str:
    """Run as a user that PostgreSQL accepts: it refuses to be root."""
    user = None
    if os.geteuid() == 0:
        user = USER if USER in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
    done = subprocess.run(command, user=user, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Address of an empty database `prefect`, as libpq reads it; the server ends with the block."""
    there = binaries()
    assert there
    data, log, port = folder / "data", folder / "log.txt", free_port()
    folder.mkdir()
    if os.geteuid() == 0:  # the server's user writes here
        folder.chmod(0o777)
        folder.parent.chmod(0o755)
    _run([str(there / "initdb"), "-D", str(data), "-A", "trust", "-U", "prefect", "-E", "UTF8"])
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c max_connections=200"
    progress = [str(there / "pg_ctl"), "-D", str(data), "-w"]
    _run([*progress, "-l", str(log), "-o", options, "start"])
    try:
        _run([str(there / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect",
              "prefect"])  # fmt: skip
        yield f"prefect@127.0.0.1:{port}/prefect"
    finally:
        _run([*progress, "-m", "immediate", "stop"])


def query(address: str, sql: str) -> str:
    """The output of psql for a query: a line per row, columns separated by |."""
    there = binaries()
    assert there
    psql = shutil.which("psql") or str(there / "psql")
    return _run([psql, f"postgresql://{address}", "-At", "-c", sql]).strip()
