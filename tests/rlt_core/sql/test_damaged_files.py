"""A flipped bit in a table's file is one error that names the file, or changes nothing."""

import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from rlt_core.errors import UserError
from rlt_core.rows import read_rows
from rlt_core.sql import checked_files
from rlt_core.sql.checked_files import HEAD_BYTES, has_checksums
from rlt_core.sql.schemas import TABLES
from rlt_core.sql.views import dataset, sql_errors
from rlt_core.store import Manifest, Store
from tests.sample_store import commit, score_row

FLIPS = 120


def damage(whole: bytes, rng: random.Random) -> bytes:
    bit = rng.randrange(8 * len(whole))
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def rows(connection: duckdb.DuckDBPyConnection, store: Store, manifest: Manifest) -> list[Any]:
    """Rows as SQL reads them, from a dataset that has read nothing before."""
    connection.register("scores", dataset(store, "scores", [manifest]))
    with sql_errors("from scores"):
        return connection.sql("from scores order by trace_id").fetchall()


def scores() -> list[dict[str, Any]]:
    return [score_row(i % 7, -float(i), sample=i) for i in range(60)]


def without_checksums(store: Store, manifest: Manifest) -> Manifest:
    """The artifact as an older version wrote it."""
    file = Path(store.data_path(manifest)) / "scores.parquet"
    pq.write_table(pq.read_table(file, schema=TABLES["scores"]), file, compression="zstd")
    attempt = type("Attempt", (), {"out": file.parent})
    old = manifest.model_copy(update={"files": store.describe(attempt)})  # type: ignore[arg-type]
    path = Path(store.data_path(manifest)).with_suffix("").parent.with_suffix(".json")
    path.write_text(old.model_dump_json())
    return old


@pytest.mark.parametrize("old", [False, True])
def test_every_bit_counts(tmp_path: Path, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:
        monkeypatch.setattr(checked_files, "LARGE_BYTES", 0)
    store = Store(str(tmp_path / "store"))
    manifest = commit(store, "trace-scoring[a]", {"scores": scores()})
    if old:
        manifest = without_checksums(store, manifest)
    file = Path(store.data_path(manifest)) / "scores.parquet"
    whole, rng = file.read_bytes(), random.Random(1)
    assert has_checksums(whole[:HEAD_BYTES]) is not old
    with duckdb.connect() as connection:
        expected = rows(connection, store, manifest)
        for _ in range(FLIPS):
            file.write_bytes(damage(whole, rng))
            with pytest.raises(UserError, match=r"scores cannot be read.*scores\.parquet: altered"):
                rows(connection, store, manifest)
        file.write_bytes(whole)
        assert rows(connection, store, manifest) == expected


def test_the_pages_of_a_large_file_are_checked(
    store_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As few values as pages hold; the bits of their headers and of the footer are left alone."""
    monkeypatch.setattr(checked_files, "LARGE_BYTES", 0)
    monkeypatch.setattr(checked_files, "_intact", set())
    store = Store(store_root)
    manifest = commit(store, "trace-scoring[a]", {"scores": scores()})
    path, rng = f"{store.data_path(manifest)}/scores.parquet", random.Random(2)
    whole = store.files.fs.cat_file(path)
    with duckdb.connect() as connection:
        rows(connection, store, manifest)
        for start in (i for i in range(4, len(whole)) if whole.startswith(b"(\xb5/\xfd", i)):
            end = start + 12  # in the first frames of zstd, which are the pages
            store.files.fs.pipe_file(
                path, whole[:start] + damage(whole[start:end], rng) + whole[end:]
            )
            with pytest.raises(UserError, match="scores cannot be read"):
                rows(connection, store, manifest)


def test_tables_of_a_folder_are_checked_by_page(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    folder = store.intact(commit(store, "trace-scoring[a]", {"scores": scores()}))
    file = folder / "scores.parquet"
    whole = file.read_bytes()
    frame = whole.index(b"(\xb5/\xfd")
    file.write_bytes(whole[: frame + 6] + bytes([whole[frame + 6] ^ 4]) + whole[frame + 7 :])
    with pytest.raises(UserError, match=r"scores\.parquet: damaged"):
        read_rows(folder, "scores")


def test_verify_notes_files_without_checksums(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    store = Store(root)
    old = without_checksums(store, commit(store, "trace-scoring[old]", {"scores": scores()}))
    new = commit(store, "trace-scoring[new]", {"scores": scores(), "dropped": []})
    done = CliRunner().invoke(app, ["artifacts", "verify", "--store", root])
    note = f"trace-scoring[old] ({old.ref.key}): note: no page checksums: scores.parquet"
    assert done.exit_code == 0 and note in done.output
    assert new.ref.key not in done.output and "2 of 2 artifacts are intact" in done.output
