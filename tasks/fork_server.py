"""A server that imports once and forks a child for each connection.

Its socket is in a folder of mode 0700. Both sides check the other's user before they read or send a
byte; messages are lines of JSON, never pickles. Each child does its own handshake, so that none
waits for another, and gives up after HANDSHAKE_S; a client leaves a server that is silent for as
long. The socket gets its name once the imports are done. The server ends with the process that
started it, and removes its socket.
"""

import contextlib
import gc
import importlib
import json
import math
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
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

HANDSHAKE_S = 20.0
IMPORT_S = 300.0
"""Seconds that a client waits for another process's server to import."""
POLL_S = 0.2
IMPORTING = "importing"
"""Name of a server's socket while it imports."""
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
        """Close the connection."""
        self._connection.close()


def is_ours(connection: socket.socket) -> bool:
    """Return whether a process of this user made the other end of a Unix socket."""
    if hasattr(socket, "SO_PEERCRED"):
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return bool(struct.unpack("3i", found)[1] == os.getuid())
    found = connection.getsockopt(0, 1, 8)  # macOS: LOCAL_PEERCRED, the beginning of its xucred
    return bool(struct.unpack("2I", found)[1] == os.getuid())


# ---------------------------------------------------------------- the client's side
def fork(
    address: str,
    request: Mapping[str, Any],
    importing: Callable[[], bool] | None = None,
    import_s: float | None = None,
) -> tuple[int, Channel]:
    """Have the server fork a child that gets `request`; return the child's pid and its channel.

    `importing`: whether a server without an address may yet have one. Raises Silent.
    """
    deadline = time.monotonic() + (IMPORT_S if import_s is None else import_s)
    importing = importing or partial(_listens, f"{os.path.dirname(address)}/{IMPORTING}")
    while not os.path.exists(address):
        if time.monotonic() > deadline or not (importing() or os.path.exists(address)):
            raise Silent(f"{address} is not there")
        time.sleep(POLL_S)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(HANDSHAKE_S)
    channel = Channel(connection)
    try:
        connection.connect(address)
        if not is_ours(connection):
            raise Silent(f"{address} is another user's")
        channel.send(request)
        if (answer := channel.receive(HANDSHAKE_S)) is None:
            raise Silent(f"{address} is silent")
        channel.send({"go": True})
        connection.settimeout(None)
        return int(answer["pid"]), channel
    except (OSError, EOFError, KeyError, ValueError) as error:
        channel.close()
        raise Silent(f"{address}: {error!r}") from None
    except BaseException:
        channel.close()
        raise


def _listens(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)
        try:
            probe.connect(address)
        except BlockingIOError:  # many others ask
            return True
        except OSError:
            return False
        return True


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
            listener.bind(f"{self._folder.name}/{IMPORTING}")
            listener.listen(128)
            start = (
                "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
                f"sys.path[:] = {sys.path!r}; from tasks.fork_server import serve; "
                f"serve({listener.fileno()}, {target!r}, {list(modules)!r})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", start],
                stdin=subprocess.PIPE,
                pass_fds=(listener.fileno(),),
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, request: Mapping[str, Any]) -> tuple[int, Channel]:
        """See the function `fork`."""
        return fork(self.address, request, self.is_alive, import_s=math.inf)


# ---------------------------------------------------------------- the server
def serve(listener_fd: int, target: str, modules: Iterable[str]) -> None:
    """Import `modules` and fork a child per connection, until standard input, the starter's pipe,
    ends. `target` is called with SIGTERM blocked, until it can hear a stop request."""
    for module in (target.partition(":")[0], *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()  # a child's collections, one at each start of a training, need not visit all that
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    children: dict[int, socket.socket] = {}
    listener = socket.socket(fileno=listener_fd)
    folder = Path(listener.getsockname()).parent
    with contextlib.suppress(FileNotFoundError):  # its starter has ended meanwhile
        os.rename(listener.getsockname(), folder / "socket")
    while True:
        ready = select.select([0, listener.fileno(), woken], [], [])[0]
        if 0 in ready:
            shutil.rmtree(folder, ignore_errors=True)
            gc.unfreeze()  # else libraries report what is left as leaks
            return
        if woken in ready:
            os.read(woken, 1 << 16)
            _report_ends(children)
        if listener.fileno() not in ready:
            continue
        connection = listener.accept()[0]
        if not is_ours(connection):
            connection.close()
            continue
        pid = os.fork()
        if pid:
            children[pid] = connection
            continue
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in (listener, *children.values()):
                other.close()
            for end in (woken, wakes):
                os.close(end)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            status = _child(target, connection)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)


def _report_ends(children: dict[int, socket.socket]) -> None:
    """Send the exit status of each child that has ended, negative for a signal."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if connection := children.pop(pid, None):
            end = json.dumps({"exit": os.waitstatus_to_exitcode(status)}).encode()
            with contextlib.suppress(OSError), connection:
                connection.send(b"\n" + end + b"\n", socket.MSG_DONTWAIT)


def _child(target: str, connection: socket.socket) -> int:
    connection.settimeout(HANDSHAKE_S)
    channel = Channel(connection)
    try:
        request = channel.receive(HANDSHAKE_S)
        if request is None:
            return 1
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        channel.send({"pid": os.getpid()})
        if not channel.receive(HANDSHAKE_S):  # the client has left this server
            return 1
    except (EOFError, OSError):
        return 1
    connection.settimeout(None)
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(request, channel)
    return 0
