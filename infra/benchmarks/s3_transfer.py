"""Files to and from S3, singly and side by side: `python -m infra.benchmarks.s3_transfer`.

Singly: fsspec's `put_file` and `get_file`, a file at a time and in one piece. Side by side: the
store's `upload` and `download` (16 files at once, large ones in parts). Against a real S3 server on
loopback, which costs both ways the same work on this machine's cores; and against the same server
as if it were far: `DELAY_S` before every request, `FAR_BYTES_PER_S` on each connection. Best of
`REPEATS`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.benchmarks.sql_paths import BUCKET, s3_server
from rlt_core.store.files import local_tree
from rlt_core.store.s3 import connect
from rlt_core.store.s3_files import S3Files

SMALL_FILES, SMALL_BYTES = 200, 20_000
LARGE_BYTES = 256 << 20
FAR_FILES, FAR_LARGE_BYTES = 50, 64 << 20
WHOLE = 1 << 30
"""Bytes of a part that no file here reaches."""
DELAY_S = 0.03
FAR_BYTES_PER_S = 20e6
REPEATS = 2


class Workplace:
    """Files of one size, and a place on S3."""

    def __init__(self, folder: Path, name: str, count: int, size: int) -> None:
        self.name, self.total = name, count * size
        self.source = folder / "source" / name
        self.source.mkdir(parents=True)
        for number in range(count):
            (self.source / f"{number:04}").write_bytes(os.urandom(size))
        self.sizes = {file.name: size for file in local_tree(self.source)}
        self._folder, self._number = folder, 0

    def files(self) -> S3Files:
        """An empty prefix with an empty cache."""
        self._number += 1
        name = f"{self.name.translate({32: 45, 58: 45})}-{self._number}"
        return S3Files(f"s3://{BUCKET}/{name}", self._folder / "cache" / name)

    def one_by_one(self) -> tuple[float, float]:
        """Seconds up and down."""
        files = self.files()
        target = files.new_folder("down")
        up = timed(
            lambda: [
                files.fs.put_file(str(self.source / name), files.full(f"a/{name}"), chunksize=WHOLE)
                for name in self.sizes
            ]
        )
        down = timed(
            lambda: [
                files.fs.get_file(
                    files.full(f"a/{name}"), str(target / name), chunksize=WHOLE, max_concurrency=1
                )
                for name in self.sizes
            ]
        )
        return up, down

    def at_once(self) -> tuple[float, float]:
        """Seconds up and down."""
        files = self.files()
        shutil.copytree(self.source, files.local("a"))
        up = timed(lambda: files.upload("a"))
        files.drop_copies("a", self.sizes)
        down = timed(lambda: files.download("a", self.sizes))
        return up, down


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(work: Workplace) -> None:
    """Print both ways and their ratio."""
    first = [work.one_by_one() for _ in range(REPEATS)]
    second = [work.at_once() for _ in range(REPEATS)]
    for index, direction in enumerate(("up", "down")):
        slow = min(seconds[index] for seconds in first)
        fast = min(seconds[index] for seconds in second)
        print(
            f"{work.name:<28}{direction:<6}{slow:8.2f} s {work.total / slow / 1e6:8.1f} MB/s"
            f"{fast:10.2f} s {work.total / fast / 1e6:8.1f} MB/s{slow / fast:8.1f}"
        )


class FarServer:
    """Passes bytes on to a server, so many a second on each connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client = self._listener.accept()[0]
            server = socket.create_connection(("127.0.0.1", self._port))
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        due = 0.0
        with suppress(OSError):
            while data := source.recv(1 << 18):
                due = max(due, time.perf_counter()) + len(data) / FAR_BYTES_PER_S
                time.sleep(max(0.0, due - time.perf_counter()))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


async def _pause(**_: object) -> None:
    """A handler of botocore's event before a request; it holds up only that request."""
    await asyncio.sleep(DELAY_S)


@contextmanager
def far() -> Iterator[None]:
    """The server of the environment is far away inside the block."""
    near = os.environ["AWS_ENDPOINT_URL"]
    os.environ["AWS_ENDPOINT_URL"] = FarServer(int(near.rsplit(":", 1)[1])).url
    connect().s3.meta.events.register("before-send.s3", _pause)
    yield
    os.environ["AWS_ENDPOINT_URL"] = near


def main() -> None:
    """All sizes, near and far."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with s3_server(folder / "s3"):
            print(f"{'':<28}{'':<6}{'singly':>20}{'side by side':>26}{'ratio':>10}")
            compare(Workplace(folder, f"{SMALL_FILES} files of 20 kB", SMALL_FILES, SMALL_BYTES))
            compare(Workplace(folder, "1 file of 256 MiB", 1, LARGE_BYTES))
            with far():
                compare(Workplace(folder, f"far: {FAR_FILES} of 20 kB", FAR_FILES, SMALL_BYTES))
                compare(Workplace(folder, "far: 1 file of 64 MiB", 1, FAR_LARGE_BYTES))


if __name__ == "__main__":
    main()
