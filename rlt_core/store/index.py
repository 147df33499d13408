"""A copy of a store's manifests on this machine, in one SQLite file: each is read only once.

A manifest lies beside its artifact's folder, so that listing the folder of a kind names all of
them with their sizes and times. A row whose path and mark are listed is as good as the file; other
rows are dropped, other files read. The index thus knows what the listing knows, and may be deleted
at any time. Processes share it: who lists earlier may drop what another has just read, so each
holds its answer against its own listing. A machine that is new to a store on S3 begins with the
copy that another has left there (`index_copy`).

On S3 a listing of 100,000 manifests takes longer than anything else. So each commit and removal
writes `CHANGED` anew once its manifest is there or gone, and the index remembers after which of its
words it was the whole listing. While that word stands nothing has changed, and who only looks needs
no listing. What reaches the store another way (files deleted by hand, `aws s3 sync`, a process
killed between its manifest and its word of it) is seen after `TRUSTED_S`. Nothing is computed,
deleted or copied on such a look.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

from rlt_core.store import index_copy
from rlt_core.store.files import Entry, Files
from rlt_core.store.manifest import Manifest

FEW = 100
"""Manifests; so many are read anew each time, and no file is made for them."""
READ_AT_ONCE = 2000
"""Manifests between two commits of the index: what a killed process reads again."""
SETTLED_S = 10.0
"""A younger manifest is not indexed: some servers tell whole seconds, within which one may have
been removed and written anew with as many bytes."""
BUSY_S = 60.0
TRUSTED_S = 600.0
"""How long a listing may stand in for a new one while nobody tells of a change."""
CHANGED = ".manifests-changed"
"""Holds another word after each commit and removal."""
VERSION = 3
"""Raised when rows or keys change: an index of another version is made anew."""

_COLUMNS = """(
    path text primary key, mark text, run text, kind text, attempt text, stage text,
    stage_version int, label text, profile text, seed int, started int, created int, seconds real,
    gpu_seconds real, threads int, device text, bytes int, rows int, tables text, inputs text,
    metrics text, config text
) without rowid"""
"""`started`, `created`: milliseconds since 1970 (UTC); JSON: `tables` (name -> files), `inputs`
(name -> key), `metrics`, `config`."""
_DOCUMENT = "(path text primary key, document blob)"
_KEPT = f"""
begin immediate;
pragma user_version = {VERSION};
create table if not exists facts{_COLUMNS};
create table if not exists documents{_DOCUMENT};
create index if not exists by_label on facts(stage, label, seed);
create index if not exists by_mark on facts(path, mark, run, label, kind, attempt, tables);
create table if not exists whole(word blob, listed real);
commit;
"""
"""`by_mark` covers what every look at the store reads, so that wide rows are left alone. `whole`
has a row while `facts` are all that was listed at that time and after that word of `CHANGED`; who
changes `facts` deletes it in the same transaction."""
_SEEN = f"""
pragma temp_store = memory;
create temp table listed(path text primary key, mark text) without rowid;
create temp table other_facts{_COLUMNS};
create temp table other_documents{_DOCUMENT};
"""
"""What is this process's own: the part of the listing that `facts` has to answer for, and
manifests that are not indexed (yet)."""
_MISSING = "select path from listed left join facts using (path, mark) where facts.path is null"

log = logging.getLogger(__name__)


def tables_of(manifest: Manifest) -> dict[str, list[str]]:
    """The files of each table: `{table}.parquet` or `{table}/*.parquet`."""
    found: dict[str, list[str]] = {}
    for entry in manifest.files:
        path = PurePosixPath(entry.path)
        folder = path.parent.as_posix()
        if path.suffix == ".parquet":
            found.setdefault(path.stem if folder == "." else folder, []).append(entry.path)
    return found


def _milliseconds(time: datetime) -> int:
    return (time - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def _row(path: str, mark: str, one: Manifest) -> tuple[object, ...]:
    return (
        path, mark, one.ref.key, one.ref.kind, one.attempt, one.stage, one.stage_version,
        one.label, one.profile, one.seed, _milliseconds(one.started_at),
        _milliseconds(one.finished_at), one.seconds, one.gpu_seconds, one.threads, one.device,
        one.bytes, one.rows, json.dumps(tables_of(one)),
        json.dumps({name: ref.key for name, ref in one.inputs.items()}), json.dumps(one.metrics),
        json.dumps(one.config),
    )  # fmt: skip


Rows = list[list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Select:
    """Columns of the manifests that fit, `document` (the file's bytes) among them if need be."""

    columns: str
    where: str = "true"
    values: tuple[object, ...] = ()
    newest: int | None = None
    """At most so many, the newest first; None: all, by path."""

    def sql(self, whole: bool = False) -> str:
        """The query; takes the values twice. `whole`: all facts are listed; takes them once."""
        kept, other = "facts" if whole else "facts join listed using (path, mark)", "other_facts"
        if "document" in self.columns:
            kept += " join documents using (path)"
            other += " join other_documents using (path)"
        position = "path" if self.newest is None else "-created"
        both = " union all ".join(
            f"select {position} as position, {self.columns} from {source} where {self.where}"
            for source in ((kept,) if whole else (kept, other))
        )
        return both if self.newest is None else f"{both} order by position limit {self.newest}"

    def rows(self, database: sqlite3.Connection, whole: bool = False) -> list[tuple[Any, ...]]:
        """What the query finds, in order; Python sorts wide rows in a fraction of SQLite's time."""
        values = self.values if whole else (*self.values, *self.values)
        found = database.execute(self.sql(whole), values).fetchall()
        return [row[1:] for row in sorted(found, key=itemgetter(0))]


class Index:
    """The manifests of one store."""

    def __init__(self, files: Files, parse: Callable[[str, bytes], Manifest]) -> None:
        """`parse` makes a manifest of a file, or raises UserError naming it."""
        self._files, self._parse = files, parse

    def listed(self) -> tuple[dict[str, Entry], list[str]]:
        """The manifests by path, and the folders of keys that have none beside them."""
        bases = [f"artifacts/{kind}" for kind in self._files.names("artifacts")]
        manifests: dict[str, Entry] = {}
        folders = []
        for base, found in zip(bases, self._files.entries(bases), strict=True):
            for name, entry in found.items():
                if entry is None and f"{name}.json" not in found:
                    folders.append(f"{base}/{name}")
                elif entry is not None and name.endswith(".json"):
                    manifests[f"{base}/{name}"] = entry
        return manifests, folders

    def announce(self) -> None:
        """Tell those who look that a manifest has come or gone; to be called after it has."""
        if not self._files.is_local:
            self._files.write(CHANGED, uuid.uuid4().hex.encode())

    def look(self, *queries: Select) -> Rows:
        """`select` for those who only show what they find: without a listing where nothing has
        changed since the last one."""
        word = None if self._files.is_local else self._files.read(CHANGED)
        if word is None:
            return self.select(*queries)
        found = self._of_the_last_listing(word, queries)
        return self.select(*queries, word=word) if found is None else found

    def _of_the_last_listing(self, word: bytes, queries: Sequence[Select]) -> Rows | None:
        """The rows, if the index is all that was listed after this word and not long ago."""
        file = self._files.index_file()
        if not file.exists():
            return None
        now = time.time()
        try:
            with closing(sqlite3.connect(file, timeout=BUSY_S)) as database:
                database.execute("begin")
                holds = "select 1 from whole where word = ? and listed between ? and ?"
                if not database.execute(holds, (word, now - TRUSTED_S, now)).fetchone():
                    return None
                return [one.rows(database, whole=True) for one in queries]
        except sqlite3.Error as error:  # of another version, or damaged: `select` makes it anew
            log.info("%s: %s", file, error)
            return None

    def select(self, *queries: Select, word: bytes | None = None) -> Rows:
        """The rows of each query: artifacts that are committed now, all of one moment.

        `word`: what `CHANGED` held before, under which the index may remember the listing.
        """
        began = time.time()
        manifests, folders = self.listed()

        def answer(file: Path | None) -> Rows:
            with closing(sqlite3.connect(file or ":memory:", timeout=BUSY_S)) as database:
                read = self._bring_up_to_date(database, manifests, folders)
                self._hold(database)
                found = [one.rows(database) for one in queries]
                database.rollback()
                if file and word:
                    self._remember(database, word, began)
                if file and read >= index_copy.MANY and not self._files.is_local:
                    index_copy.leave(self._files, VERSION, database, file.parent)
                return found

        return self._with_file(answer, len(manifests))

    def _with_file(self, answer: Callable[[Path | None], Rows], manifests: int) -> Rows:
        """The answer from the index's file; one that is damaged or cannot be written is no harm."""
        if manifests <= FEW:
            return answer(None)
        file = self._files.index_file()
        for attempt in range(2):
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                if self._begins(file, manifests) and not attempt:
                    index_copy.take(self._files, VERSION, file)
                return answer(file)
            except (sqlite3.OperationalError, OSError) as error:  # e.g. a read-only store
                log.info("%s cannot be used: %s", file, error)
                break
            except sqlite3.DatabaseError as error:
                log.info("%s is damaged: %s", file, error)
                if not attempt:
                    with suppress(OSError):
                        file.unlink()
        return answer(None)

    def _begins(self, file: Path, manifests: int) -> bool:
        """Whether this machine has no index yet of a store that may have a copy of one."""
        return not self._files.is_local and manifests >= index_copy.MANY and not file.exists()

    def _bring_up_to_date(
        self, database: sqlite3.Connection, manifests: dict[str, Entry], folders: Sequence[str]
    ) -> int:
        """Make `facts` answer for the listing; returns how many manifests it had to read for it."""
        [tables] = database.execute("select count(*) from sqlite_master").fetchone()
        [version] = database.execute("pragma user_version").fetchone()
        if tables and version != VERSION:
            raise sqlite3.DatabaseError(f"it has version {version}, not {VERSION}")
        database.executescript(_SEEN if tables else _KEPT + _SEEN)
        with database:
            database.executemany(
                "insert into listed values (?, ?)",
                ((path, entry.mark) for path, entry in manifests.items()),
            )
        if database.execute(
            "select 1 from facts left join listed using (path, mark) where listed.path is null"
        ).fetchone():
            with database:
                gone = "path not in (select path from facts join listed using (path, mark))"
                database.execute("delete from whole")
                database.execute(f"delete from documents where {gone}")
                database.execute(f"delete from facts where {gone}")
        missing = database.execute(_MISSING).fetchall()
        settled = time.time() - SETTLED_S
        old = [path for (path,) in missing if manifests[path].changed_s < settled]
        young = [path for (path,) in missing if manifests[path].changed_s >= settled]
        young += [f"{folder}/manifest.json" for folder in folders]
        for start in range(0, len(old), READ_AT_ONCE):
            chunk = {path: manifests[path].mark for path in old[start : start + READ_AT_ONCE]}
            self._read(database, chunk, "")
        self._read(database, dict.fromkeys(young, ""), "other_")
        return len(old)

    def _remember(self, database: sqlite3.Connection, word: bytes, began: float) -> None:
        """Note under which word the index is the whole listing that began then, if it is."""
        sizes = "select (select count(*) from facts), (select count(*) from listed)"
        with suppress(sqlite3.OperationalError), database:  # e.g. a read-only file
            database.execute("begin immediate")
            facts, listed = database.execute(sizes).fetchone()
            others = "select path from other_facts union all " + _MISSING
            if facts == listed and not database.execute(others).fetchone():
                database.execute("delete from whole")
                database.execute("insert into whole values (?, ?)", (word, began))

    def _hold(self, database: sqlite3.Connection) -> None:
        """Begin a transaction that sees all that is listed, whatever other processes drop."""
        while True:
            database.execute("begin")
            lost = database.execute(_MISSING).fetchall()
            if not lost:
                return
            database.rollback()
            self._read(database, dict.fromkeys((path for (path,) in lost), ""), "other_")

    def _read(self, database: sqlite3.Connection, marks: dict[str, str], prefix: str) -> None:
        """Read manifests into the tables with this prefix; files that have gone are left out."""
        found = self._files.read_many(marks)
        rows = [_row(path, marks[path], self._parse(path, data)) for path, data in found.items()]
        settled = marks.keys() - found.keys() if prefix == "" else marks.keys()
        with database:
            database.executemany("delete from listed where path = ?", ((p,) for p in settled))
            if not rows:
                return
            if not prefix:
                database.execute("delete from whole")
            places = ", ".join("?" * len(rows[0]))
            database.executemany(f"insert or replace into {prefix}facts values ({places})", rows)
            database.executemany(
                f"insert or replace into {prefix}documents values (?, ?)", found.items()
            )
