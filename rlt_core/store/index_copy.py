"""The index's copy in a store on S3, with which a machine that is new begins.

Whoever had to read many manifests leaves one. An old copy is no harm: the listing tells which of
its rows still hold, and what it lacks is read.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from rlt_core.errors import UserError
from rlt_core.store.files import CHUNK_BYTES, Files

MANY = 2000
"""Manifests that are worth a copy: fewer are read in seconds."""

log = logging.getLogger(__name__)


def path(version: int) -> str:
    """Where the copy is, of an index of this version."""
    return f".manifests-{version}.sqlite.zst"


def take(files: Files, version: int, index: Path) -> None:
    """Unpack the store's copy to where this machine keeps its index; none, or a damaged one, is
    fine, and so is an index that another process has begun meanwhile."""
    data = files.read(path(version))
    if data is None:
        return
    try:
        with tempfile.TemporaryDirectory(dir=index.parent) as folder:
            unpacked = Path(folder) / index.name
            packed = pa.CompressedInputStream(pa.BufferReader(data), "zstd")
            with packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file, CHUNK_BYTES)
            # Of an index that was deleted: SQLite would play it back into this one.
            index.with_name(f"{index.name}-journal").unlink(missing_ok=True)
            with suppress(FileExistsError):
                os.link(unpacked, index)
    except (OSError, pa.ArrowInvalid) as error:
        log.info("%s cannot be used: %s", files.full(path(version)), error)


def leave(files: Files, version: int, database: sqlite3.Connection, near: Path) -> None:
    """Put a copy of an index, which is in no transaction, into the store, by way of a file in the
    folder `near`; a store that this machine may not write is fine."""
    with tempfile.TemporaryDirectory(dir=near) as folder:
        copy, packed = Path(folder) / "copy", Path(folder) / "packed"
        database.execute("vacuum into ?", (str(copy),))
        with copy.open("rb") as file, pa.output_stream(str(packed), compression="zstd") as stream:
            shutil.copyfileobj(file, stream, CHUNK_BYTES)
        try:
            files.put(packed, path(version))
        except UserError as error:
            log.info("%s", error)
