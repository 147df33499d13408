"""A renderer and prepared data sets, for the tests of `rlt_core.data`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlt_core.config import DataConfig
from rlt_core.data.prepare import prepare_questions
from rlt_core.models import tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from tests.row_files import write

FORMAT = load_format("tiny")
RENDERER = Renderer(FORMAT, tiny_tokenizer(FORMAT))


def prepare(
    folder: Path, records: Sequence[Mapping[str, Any]], evaluated: Any = None, **config: Any
) -> dict[str, float]:
    """Prepare a file of these records, without held-out questions; the tables are in `out`."""
    source = str(write(folder / "data.jsonl", records))
    data = DataConfig(**{"source": source, "n_validation": 0, "n_test": 0} | config)
    return prepare_questions(data, RENDERER, folder / "out", Progress(), evaluated)
