"""The columns of every table, each declared once in `columns.toml` with its type and its meaning.

Readers, writers and SQL views use these declarations, and `python -m rlt_core.sql.schemas` prints
the column reference of docs/sql.md from them.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

LOGPROBS = pa.list_(pa.float32())
TYPES: dict[str, pa.DataType] = {
    "varchar": pa.string(), "boolean": pa.bool_(), "integer": pa.int32(), "bigint": pa.int64(),
    "double": pa.float64(), "timestamp_ms": pa.timestamp("ms"), "float[]": LOGPROBS,
    "integer[]": pa.list_(pa.int32()),
}  # fmt: skip
SQL_TYPES = {kind: name for name, kind in TYPES.items()}
BUILT = ("artifacts", "costs", "lineage", "refs")
"""Views that are made from manifests; an artifact's file `{table}.parquet` or `{table}/*.parquet`
holds each of the others."""

_DECLARED = tomllib.loads(Path(__file__).with_name("columns.toml").read_text(encoding="utf-8"))
MEANINGS: dict[str, dict[str, str]] = {}
"""View -> column -> meaning. Beside the schemas, since field metadata would be written to files."""


def _schema(view: str) -> pa.Schema:
    """Return a view's columns: of a table `run`, `label` if the table lacks it, and its own."""
    own = _DECLARED[view]["columns"]
    if view not in BUILT:
        added = {"run": ["varchar", "key of the artifact that wrote the row"], "label": "artifacts"}
        own = added | own if "label" not in own else {"run": added["run"]} | own
    columns = {
        name: _DECLARED[given]["columns"][name] if isinstance(given, str) else given
        for name, given in own.items()
    }
    MEANINGS[view] = {name: meaning for name, (_, meaning) in columns.items()}
    return pa.schema([pa.field(name, TYPES[kind]) for name, (kind, _) in columns.items()])


VIEWS = {view: _schema(view) for view in _DECLARED}
"""View name -> columns: everything that SQL can name."""
TABLES = {
    view: pa.schema([schema.field(name) for name in _DECLARED[view]["columns"]])
    for view, schema in VIEWS.items()
    if view not in BUILT
}
"""Table name -> columns of its files."""
QUESTIONS, TRACES, SCORES = (TABLES[name] for name in ("questions", "traces", "scores"))
TRAIN_STEPS, ROLLOUTS = TABLES["train_steps"], TABLES["rollouts"]


def reference() -> Iterator[str]:
    """The lines of the column reference of docs/sql.md."""
    for view, schema in VIEWS.items():
        yield from (f"### {view}", "", _DECLARED[view]["about"], "")
        yield from ("| column | type | meaning |", "| --- | --- | --- |")
        for field in schema:
            meaning = MEANINGS[view][field.name]
            yield f"| `{field.name}` | {SQL_TYPES[field.type]} | {meaning} |"
        yield ""


if __name__ == "__main__":
    print("\n".join(reference()))
