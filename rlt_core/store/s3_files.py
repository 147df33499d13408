"""Files under `s3://bucket/prefix`, with local copies of what never changes."""

import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.asyn import sync
from pyarrow.fs import FileSelector

from rlt_core.errors import UserError
from rlt_core.names import is_relative
from rlt_core.store import s3
from rlt_core.store.cache import Cache
from rlt_core.store.files import (
    DOCUMENT_BYTES,
    TOO_LARGE,
    Damaged,
    Entry,
    Files,
    Result,
    listed_below,
    parallel,
    sha256_of,
    tree,
)

FILES_AT_ONCE = 16
PARTS_AT_ONCE = 4
PART_BYTES = 8 << 20
"""Files of two parts and more travel in parts: up to 512 MB of memory in all."""
MOST_PARTS = 10_000
DELETED_AT_ONCE = 1000
CONFLICTS = 5
"""How often a create is repeated when the file of a quicker writer has gone again."""
TRANSFERS = 3
"""Tries of a transfer whose bytes are cut or altered on the way."""
PATIENCE_S = 300.0
"""Time that the end of long work waits for a server that does not answer."""
PAUSE_S = 5.0

log = logging.getLogger(__name__)

_creates_once: set[tuple[str, str]] = set()
"""Servers and stores that were seen to refuse a second create, by this process."""


class S3Files(Files):
    """Files below a prefix of a bucket. Every method raises UserError if the server refuses."""

    is_local = False
    threads = 32

    def __init__(self, root: str, cache: Path | None = None) -> None:
        self._bucket, prefix = s3.bucket_and_prefix(root)
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self.root = self.url.removeprefix("s3://")
        self.fs = s3.connect()
        self.cache = Cache(cache)
        home = self.cache.home / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._copies, self._staging = home / "files", home / "staging"
        self.manifest_copies = home / "manifests"

    def local(self, path: str) -> Path:
        self.full(path)
        return self._staging / path

    def arrow(self) -> Any:
        """Return pyarrow's file system for the bucket, with the same credentials and server."""
        with self._errors():
            return s3.arrow(self.fs)

    def patiently(self, call: Callable[[], Result]) -> Result:
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call()
            except s3.Unreachable as error:
                if time.monotonic() > give_up:
                    raise
                log.warning("%s Trying again for %.0f s.", error, give_up - time.monotonic())
                time.sleep(PAUSE_S)

    # ------------------------------------------------------------ requests
    def _errors(self) -> Any:
        return s3.s3_errors(self.fs, self.url)

    def _key(self, path: str) -> str:
        return self.full(path).removeprefix(f"{self._bucket}/")

    def _ask(self, method: str, **arguments: Any) -> dict[str, Any]:
        """One request. Raises FileNotFoundError, s3.Refused or UserError."""

        def ask() -> dict[str, Any]:
            with self._errors():
                answer: dict[str, Any] = self.fs.call_s3(method, Bucket=self._bucket, **arguments)
                return answer

        return _again(ask)

    def require_writable(self) -> None:
        """Raises UserError if the server refuses writes, or ignores the condition of `create`."""
        server = (s3.endpoint(self.fs), self.url)
        if server in _creates_once:
            return
        probe = self._key(f".{uuid.uuid4().hex}")
        try:
            for content in (b"1", b"2"):
                self._ask("put_object", Key=probe, Body=content, IfNoneMatch="*")
        except s3.Refused:
            _creates_once.add(server)
        except s3.Unsupported:
            pass
        finally:
            with suppress(UserError, s3.Unsupported):
                self._ask("delete_object", Key=probe)
        if server not in _creates_once:
            raise UserError(
                f"store {self.url}: {server[0]} ignores the condition If-None-Match of a write, so "
                "that one run could overwrite the artifacts of another. Use a server that honours "
                "it (AWS, SeaweedFS, a recent MinIO or Ceph; docs/s3.md)"
            )

    # ------------------------------------------------------------ single files
    def read(self, path: str) -> bytes | None:
        found = self._read_tagged(path)
        return found[0] if found else None

    def _read_tagged(self, path: str) -> tuple[bytes, str] | None:
        """The bytes and the server's tag of this version of them."""

        def read() -> tuple[bytes, str]:
            answer = self._ask("get_object", Key=self._key(path))
            if answer["ContentLength"] > DOCUMENT_BYTES:
                answer["Body"].close()
                raise Damaged(f"{self.full(path)} cannot be read: {TOO_LARGE}")
            with self._errors():
                return sync(self.fs.loop, answer["Body"].read), answer["ETag"]

        try:
            return _again(read)
        except FileNotFoundError:
            return None

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet, atomically; False if another writer was first.

        A conditional put (If-None-Match). It is refused, too, when it is the retry of one whose
        acknowledgement was lost: the file then holds our bytes.
        """
        self.require_writable()
        for _ in range(CONFLICTS):
            try:
                self._ask("put_object", Key=self._key(path), Body=data, IfNoneMatch="*")
                return True
            except s3.Refused:
                there = self.read(path)
                if there is not None:
                    return there == data
        raise UserError(f"store {self.url}: {path} comes and goes while it is to be created")

    def write(self, path: str, data: bytes) -> None:
        self._ask("put_object", Key=self._key(path), Body=data)

    def swap(self, path: str, expected: Callable[[bytes], bool], new: bytes | None) -> bool:
        """Replace a file (None: delete it) if its content is as expected, as one atomic step.

        A conditional put or delete (If-Match). On a server that does not support these, it takes
        two requests and is not atomic.
        """
        found = self._read_tagged(path)
        if found is None or not expected(found[0]):
            return False
        arguments = {"Key": self._key(path)} | ({} if new is None else {"Body": new})
        method = "delete_object" if new is None else "put_object"
        try:
            try:
                self._ask(method, **arguments, IfMatch=found[1])
            except s3.Unsupported:
                self._ask(method, **arguments)
            return True
        except (s3.Refused, FileNotFoundError):
            return new is not None and self.read(path) == new

    def put(self, source: Path, path: str) -> None:
        """Copy a local file into the store, a large one in parts."""
        part = max(PART_BYTES, math.ceil(source.stat().st_size / MOST_PARTS))

        def put() -> None:
            with self._errors():
                self.fs.put_file(
                    str(source), self.full(path), chunksize=part, max_concurrency=PARTS_AT_ONCE
                )

        _again(put)

    def fetch(self, path: str, size: int, target: Path) -> None:
        """Copy a file of this size to a local path, where it appears whole or not at all.

        Raises Damaged if it is missing or of another size.
        """

        def get() -> None:
            with self._errors():
                self.fs.get_file(
                    self.full(path), str(part), chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE
                )

        with self._temporary(target) as part:
            try:
                for _ in range(TRANSFERS):
                    _again(get)
                    if (arrived := part.stat().st_size) == size:
                        break
                else:
                    raise Damaged(f"{self.full(path)}: {arrived} bytes, {size} when committed")
            except FileNotFoundError:
                raise Damaged(f"{self.full(path)}: missing") from None
            os.replace(part, target)

    def sha256(self, path: str, size: int) -> str:
        """Hex sha256 of the bytes in the store, not of a local copy."""
        with self.changing():
            self._staging.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._staging) as folder:
                copy = Path(folder) / "copy"
                self.fetch(path, size, copy)
                return sha256_of(copy)

    # ------------------------------------------------------------ folders
    def listed(self, path: str, deep: bool = False) -> list[Entry]:
        """Return files and folders directly below a folder on S3, or with `deep` all files below
        it; nothing if it does not exist.

        pyarrow reads a page in a tenth of botocore's time, and takes a missing bucket for an empty
        folder: where it finds nothing, botocore asks again. Some servers (SeaweedFS) go on naming
        a folder for a while after its last file has gone.
        """
        folder = self.full(path).rstrip("/")
        selector = FileSelector(folder, allow_not_found=True, recursive=deep)
        found = []
        with suppress(OSError):
            found = self.arrow().get_file_info(selector)
        if not found:
            try:
                self._ask("list_objects_v2", Prefix=f"{self._key(path).rstrip('/')}/", MaxKeys=1)
            except FileNotFoundError:
                raise UserError(f"store {self.url}: its server is not one of S3") from None
            found = self.arrow().get_file_info(selector)
        start = len(folder) + 1
        return [
            Entry(each.path[start:], each.size, each.mtime_ns or 0)
            for each in found
            if (each.is_file or not deep) and is_relative(each.path[start:])
        ]

    def unsent(self, path: str, deep: bool = False) -> list[Entry]:
        return listed_below(self._staging / path, deep)

    def remove(self, path: str) -> None:
        for place in (self.local(path), self._copies / path):
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)
        keys = [self._key(path), *(self._key(f"{path}/{name}") for name in self.sizes(path))]
        for start in range(0, len(keys), DELETED_AT_ONCE):
            objects = [{"Key": key} for key in keys[start : start + DELETED_AT_ONCE]]
            answer = self._ask("delete_objects", Delete={"Objects": objects, "Quiet": True})
            if errors := answer.get("Errors"):
                raise UserError(
                    f"store {self.url}: {errors[0]['Key']} cannot be deleted ({errors[0]['Code']})"
                )

    def upload(self, path: str) -> None:
        """Make all files in `new_folder(path)` durable.

        Called again after an error, it sends what has not arrived. The local folder becomes a copy
        that may be evicted: its files are no longer below `local(path)`.
        """
        folder = self.local(path)
        here = tree(folder)
        there = self.sizes(path)
        missing = [name for name, size in here.items() if there.get(name) != size]

        def put(name: str) -> None:
            self.put(folder / name, f"{path}/{name}")

        parallel(put, missing, FILES_AT_ONCE)
        if missing and (there := self.sizes(path)) != here:
            lost = next(name for name, size in here.items() if there.get(name) != size)
            raise UserError(f"store {self.url}: {path}/{lost} did not arrive whole")
        with self.changing():
            self.cache.adopt(folder, self._copies / path)
            self.cache.trim()

    def download(self, path: str, sizes: Mapping[str, int]) -> Path:
        """Return a local folder with these files (name -> bytes) of a committed folder.

        Missing copies are fetched, several at once. All of them stay until this process ends.
        Raises UserError if a file in the store is missing or of another size.
        """
        folder = self._copies / path
        with self.changing():
            self.cache.use(folder)
            missing = [name for name, size in sizes.items() if not _touched(folder / name, size)]

            def fetch(name: str) -> None:
                with self.cache.making(folder / name):
                    if not _touched(folder / name, sizes[name]):  # by another process meanwhile
                        self.fetch(f"{path}/{name}", sizes[name], folder / name)

            parallel(fetch, missing, FILES_AT_ONCE)
            if missing:
                self.cache.trim()
        return folder

    # ------------------------------------------------------------ this machine
    @contextmanager
    def changing(self) -> Iterator[None]:
        """Errors of the local disk, e.g. a full one, as a UserError that says where."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"local copies of {self.url} cannot be kept: {error}. They are in "
                f"{self.cache.home}; XDG_CACHE_HOME moves them, RLT_CACHE_GB bounds them"
            ) from None


def _again(transfer: Callable[[], Result]) -> Result:
    """Return the result of a transfer; one whose bytes are cut or altered is repeated."""
    for _ in range(TRANSFERS - 1):
        with suppress(s3.Garbled):
            return transfer()
    return transfer()


def _touched(copy: Path, size: int) -> bool:
    """Whether a copy of this size is there; if so, it was used just now."""
    try:
        if copy.stat().st_size != size:
            return False
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True
