"""A renderer, files of rows and prepared data sets, for the tests of `rlt_core.data`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_core.config import DataConfig
from rlt_core.data.prepare import prepare_questions
from rlt_core.models import tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer

FORMAT = load_format("tiny")
RENDERER = Renderer(FORMAT, tiny_tokenizer(FORMAT))


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """A file of the type that its suffix says."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        case ".json":
            path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(records[0]))
                writer.writeheader()
                writer.writerows(records)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


def prepare(
    folder: Path, records: Sequence[dict[str, Any]], evaluated: Any = None, **config: Any
) -> dict[str, float]:
    """Prepare a file of these records, without held-out questions; the tables are in `out`."""
    source = str(write(folder / "data.jsonl", records))
    data = DataConfig(**{"source": source, "n_validation": 0, "n_test": 0} | config)
    return prepare_questions(data, RENDERER, folder / "out", Progress(), evaluated)
