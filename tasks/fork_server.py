"""A server that imports once and forks a child for each connection.

Its socket is in a folder of mode 0700. Both sides check the other's user before they read or send a
byte; messages are lines of JSON, never pickles. A process of its own does each handshake, so that
none waits for another, and gives up after HANDSHAKE_S. Connections wait until the imports are done.
The server ends with the process that started it, and removes its socket.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

HANDSHAKE_S = 20.0
IMPORT_S = 600.0
"""Seconds that a client waits for a server, which may still import."""
LONGEST_ADDRESS = 100
"""Bytes that the address of a Unix socket may have, rounded down."""


class Silent(Exception):
    """A server does not fork: it is gone, silent or another user's."""


class Channel:
    """One end of a connection: messages, one JSON object per line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._received = connection, b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError if the other end is gone."""
        # A metric may be a scalar of numpy's or torch's.
        self._connection.sendall(json.dumps(message, default=float).encode() + b"\n")

    def receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        """Return the next message, None if there is none in time. Raises EOFError at the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            line, end, rest = self._received.partition(b"\n")
            if end:
                self._received = rest
                with contextlib.suppress(ValueError):  # half a line, of a child that was killed
                    message = json.loads(line)
                    if isinstance(message, dict):
                        return message
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return None
            try:
                received = self._connection.recv(1 << 16)
            except ConnectionError:
                received = b""
            if not received:
                raise EOFError
            self._received += received

    def close(self) -> None:
        self._connection.close()


def is_ours(connection: socket.socket) -> bool:
    """Return whether a process of this user made the other end of a Unix socket."""
    if hasattr(socket, "SO_PEERCRED"):
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return bool(struct.unpack("3i", found)[1] == os.getuid())
    found = connection.getsockopt(0, 1, 8)  # macOS: LOCAL_PEERCRED, the beginning of its xucred
    return bool(struct.unpack("2I", found)[1] == os.getuid())


# ---------------------------------------------------------------- the client's side
def fork(address: str, request: Mapping[str, Any]) -> tuple[int, Channel]:
    """Have the server fork a child that gets `request`; return the child's pid and its channel.
    Raises Silent."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(IMPORT_S)
    channel = Channel(connection)
    try:
        connection.connect(address)
        if not is_ours(connection):
            raise Silent(f"{address} is another user's")
        channel.send(request)
        if (answer := channel.receive(IMPORT_S)) is None:
            raise Silent(f"{address} is silent")
        connection.settimeout(None)
        return int(answer["pid"]), channel
    except (OSError, EOFError, KeyError, ValueError) as error:
        channel.close()
        raise Silent(f"{address}: {error!r}") from None
    except BaseException:
        channel.close()
        raise


class ForkServer:
    """A server of this process's own, which imports while this process goes on."""

    def __init__(self, target: str, modules: Iterable[str], environment: Mapping[str, str]) -> None:
        """`target`: `module:function`, called in each child with the request and the channel."""
        temporary = tempfile.gettempdir()
        if len(os.fsencode(temporary)) > LONGEST_ADDRESS - 24:
            temporary = "/tmp"
        self._folder = tempfile.TemporaryDirectory(prefix="rlt-fork-", dir=temporary)
        self.address = f"{self._folder.name}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(1024)
            start = (
                "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
                f"sys.path[:] = {sys.path!r}; from tasks.fork_server import serve; "
                f"serve({listener.fileno()}, {target!r}, {list(modules)!r})"
            )
            self.process = subprocess.Popen(
                [sys.executable, "-c", start],
                stdin=subprocess.PIPE,
                pass_fds=(listener.fileno(),),
                env={**os.environ, **environment},
            )


# ---------------------------------------------------------------- the server
def serve(listener_fd: int, target: str, modules: Iterable[str]) -> None:
    """Import `modules` and fork a child per connection, until standard input, the starter's pipe,
    ends."""
    for module in (target.partition(":")[0], *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()  # a child's collections, one at each start of a training, need not visit all that
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for supervisors
    listener = socket.socket(fileno=listener_fd)
    while 0 not in select.select([0, listener_fd], [], [])[0]:
        connection = listener.accept()[0]
        if is_ours(connection) and os.fork() == 0:
            listener.close()
            _supervise(target, connection)
        connection.close()
    shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
    gc.unfreeze()  # else libraries report what is left as leaks


def _supervise(target: str, connection: socket.socket) -> NoReturn:
    """Fork the child of a connection, and send its exit status, negative for a signal. The child
    calls `target` with SIGTERM blocked, until it can hear a stop request."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        connection.settimeout(HANDSHAKE_S)
        channel = Channel(connection)
        with contextlib.suppress(EOFError, OSError):
            if (request := channel.receive(HANDSHAKE_S)) is None:
                os._exit(status)
            if pid := os.fork():
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                connection.sendall(b"\n" + json.dumps({"exit": ended}).encode() + b"\n")
                os._exit(0)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            channel.send({"pid": os.getpid()})
            connection.settimeout(None)
            module, _, function = target.partition(":")
            getattr(importlib.import_module(module), function)(request, channel)
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
