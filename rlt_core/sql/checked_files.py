"""Parquet files of a store as a dataset, compared with their manifests before they are scanned.

A file is hashed whole, once per process and version of the file. A large one is not, since a query
may need a fraction of it: pyarrow verifies the checksums of the pages that it reads (the headers
and the footer, less than a thousandth of the file, have none). Large files of older versions have
no checksums: they are hashed on a disk; on S3 they would have to be downloaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import pyarrow.dataset as ds

from rlt_core.errors import UserError
from rlt_core.store import FileEntry, Store
from rlt_core.store.files import parallel

LARGE_BYTES = 16 << 20
"""Size above which the checksums of a file's pages have to do."""
AT_ONCE = 8
HEAD_BYTES = 32
"""Length of a file's beginning that `has_checksums` needs."""

_intact: set[tuple[str, str, Any]] = set()
"""Path, SHA-256 and time of change of the files that were hashed."""


class CheckedDataset(ds.FileSystemDataset):  # type: ignore[misc]
    """A dataset whose scans raise UserError if a file that they need is not as committed."""

    def check(self, store: Store, entries: Mapping[str, FileEntry]) -> CheckedDataset:
        """Compare the files, by their full paths, with their entries from now on."""
        self._files, self._entries = store.files, entries
        return self

    def scanner(self, *, filter: ds.Expression | None = None, **options: Any) -> ds.Scanner:
        """Check the files that the filter leaves, and return their scanner."""
        parallel(self._check, [one.path for one in self.get_fragments(filter)], AT_ONCE)
        return super().scanner(filter=filter, **options)

    def _check(self, path: str) -> None:
        entry = self._entries[path]
        if self._files.is_local:
            self._files.local(path.removeprefix(f"{self._files.root}/"))  # raises for a link
        [found] = self.filesystem.get_file_info([path])
        known = (path, entry.sha256, found.mtime_ns)
        if known in _intact:
            return
        if found.size != entry.bytes:
            there = "missing" if found.size is None else f"{found.size} bytes"
            raise UserError(f"{path}: {there}, {entry.bytes} bytes when committed")
        if found.size <= LARGE_BYTES or (self._files.is_local and not self._has_checksums(path)):
            with self.filesystem.open_input_stream(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry.sha256:
                raise UserError(f"{path}: altered since it was committed (sha256 differs)")
        _intact.add(known)

    def _has_checksums(self, path: str) -> bool:
        with self.filesystem.open_input_stream(path) as file:
            return has_checksums(file.read(HEAD_BYTES))


def has_checksums(head: bytes) -> bool:
    """Return whether the pages of a Parquet file with rows have checksums, by its first bytes.

    After `PAR1` follows the header of a page, a struct in Thrift's compact protocol: type and two
    sizes, each as the byte 0x15 and a variable-length integer, then the checksum, if there is one
    (https://parquet.apache.org/docs/file-format/data-pages/checksumming/).
    """
    return bool(re.match(rb"PAR1(\x15[\x80-\xff]*[\x00-\x7f]){4}", head, re.DOTALL))
