"""Files under one root, on a local folder and on S3 alike, through fsspec.

Paths are relative to the root, with `/`. What fsspec lacks is added here: a create-only write
that is atomic on both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from rlt_core.errors import UserError

CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Hex sha256 of a local file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def local_tree(folder: Path) -> list[Path]:
    """Every file below a local folder, sorted by its relative path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Files:
    """A root folder or `s3://bucket/prefix`.

    Credentials and endpoint of S3 come from the environment or the AWS profile (AWS_ENDPOINT_URL,
    AWS_PROFILE, …), never from the root.
    """

    def __init__(self, root: str, cache: Path | None = None) -> None:
        """`cache`: where copies of remote files live; by default below XDG_CACHE_HOME."""
        self.is_local = "://" not in root
        if self.is_local:
            from fsspec.implementations.local import LocalFileSystem

            self.fs = LocalFileSystem(auto_mkdir=True)
            self.root = str(Path(root).expanduser().absolute())
            self.url = self.root
        else:
            from fsspec.core import url_to_fs

            self.fs, self.root = url_to_fs(root)
            self.root = self.root.rstrip("/")
            self.url = root.rstrip("/")
        home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.cache = cache or home / "rlt" / name

    def full(self, path: str) -> str:
        """The path as the file system sees it."""
        return f"{self.root}/{path}"

    def local(self, path: str) -> Path:
        """Where the file lies on this machine; a remote one must have been fetched."""
        return Path(self.full(path)) if self.is_local else self.cache / path

    # ------------------------------------------------------------ single files
    def read(self, path: str) -> bytes | None:
        """The bytes, or None if there is no such file."""
        try:
            return Path(self.full(path)).read_bytes() if self.is_local else self._cat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _cat(self, path: str) -> bytes:
        self.fs.invalidate_cache()
        data = self.fs.cat_file(self.full(path))
        assert isinstance(data, bytes)
        return data

    def create(self, path: str, data: bytes) -> bool:
        """Write a file that must not exist yet, atomically; False if another writer was first.

        Local: temporary file, fsync, hard link. S3: conditional put (If-None-Match), and on a
        refusal read back and compare, since a retry after a lost acknowledgement is refused too.
        """
        if not self.is_local:
            try:
                self.fs.pipe_file(self.full(path), data, mode="create")
                return True
            except FileExistsError:
                return self.read(path) == data
        temporary = self._temporary(path, data)
        try:
            os.link(temporary, self.full(path))
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        self._sync_folder(path)
        return True

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file atomically."""
        if not self.is_local:
            self.fs.pipe_file(self.full(path), data)
            return
        os.replace(self._temporary(path, data), self.full(path))
        self._sync_folder(path)

    def _temporary(self, path: str, data: bytes) -> str:
        target = Path(self.full(path))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"store {self.root} cannot be written: {error}") from None
        return str(temporary)

    def _sync_folder(self, path: str) -> None:
        descriptor = os.open(Path(self.full(path)).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------ folders
    def names(self, path: str) -> list[str]:
        """Names directly below a folder, sorted; none if it does not exist."""
        try:
            if self.is_local:
                return sorted(
                    entry.name
                    for entry in os.scandir(self.full(path))
                    if not entry.name.startswith(".")
                )
            entries = self.fs.ls(self.full(path), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries})

    def walk(self, path: str) -> list[str]:
        """Every file below a folder, relative to it, sorted."""
        base = self.full(path)
        if self.is_local:
            return [str(file.relative_to(base)) for file in local_tree(Path(base))]
        self.fs.invalidate_cache()
        return sorted(file[len(base) + 1 :] for file in self.fs.find(base))

    def remove(self, path: str) -> None:
        """Delete a file or a folder with all that is in it; nothing there is fine."""
        if not self.is_local:
            shutil.rmtree(self.cache / path, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(self.full(path), recursive=True)
            return
        target = Path(self.full(path))
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def prune(self, path: str) -> None:
        """Remove a local folder if it is empty; remote stores have no empty folders."""
        if self.is_local:
            with contextlib.suppress(OSError):
                os.rmdir(self.full(path))

    def new_folder(self, path: str) -> Path:
        """An empty local folder to fill: the final place on a local root, else a staging one."""
        folder = self.local(path)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"store {self.root} cannot be written: {error}") from None
        return folder

    def upload(self, path: str) -> None:
        """Make what `new_folder(path)` was filled with durable; local: fsync, remote: copy."""
        folder = self.local(path)
        for file in local_tree(folder):
            if self.is_local:
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            else:
                self.fs.put_file(str(file), f"{self.full(path)}/{file.relative_to(folder)}")

    def download(self, path: str, files: list[str]) -> Path:
        """Local folder with the given files of a folder; remote ones are fetched once."""
        folder = self.local(path)
        if self.is_local:
            return folder
        for name in files:
            target = folder / name
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
                self.fs.get_file(f"{self.full(path)}/{name}", part.name)
            os.replace(part.name, target)
        return folder


def entries_of(folder: Path) -> Iterator[tuple[str, str, int, int | None]]:
    """(relative path, sha256, bytes, rows of a Parquet file or None) of every file."""
    for file in local_tree(folder):
        rows = None
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_metadata(file).num_rows
        yield str(file.relative_to(folder)), sha256_of(file), file.stat().st_size, rows
