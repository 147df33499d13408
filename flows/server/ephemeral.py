"""A Prefect server for one run, which ends with the process that started it.

Prefect's own outlives a killed run, has no login and takes requests of any page in a browser.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flows.server.local import is_healthy, locked, new_login
from flows.server.processes import PRIVATE, wait_until

STOP_S = 5.0
QUIET_SERVER = {"PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL"}
"""The server's settings: it prints nothing into the display of `rlt run`."""


@contextmanager
def serve() -> Iterator[None]:
    """Let Prefect use a server of this process's own inside the block."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    login = new_login()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server.ephemeral", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
            umask=PRIVATE,
            env=os.environ | locked(port, login) | QUIET_SERVER,
        )
        assert process.stdin
        api = f"http://127.0.0.1:{port}/api"
        try:
            wait_until(
                lambda: is_healthy(api), lambda: process.poll() is None, "server", "its output"
            )
            with temporary_settings({PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: login}):
                yield
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _main(listener: int) -> None:
    """Serve the socket until the end of standard input, which is that of the parent, too."""
    import uvicorn
    from prefect.server.api.server import create_app

    from flows.server.one_writer import wait_for_the_writer

    wait_for_the_writer()
    server = uvicorn.Server(
        uvicorn.Config(
            lambda: create_app(ephemeral=True, final=True), factory=True, log_level="error"
        )
    )

    def watch_parent() -> None:
        os.read(0, 1)
        server.should_exit = True
        threading.Timer(STOP_S, os._exit, (1,)).start()

    threading.Thread(target=watch_parent, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=listener)])


if __name__ == "__main__":
    _main(int(sys.argv[1]))
