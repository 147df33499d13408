"""Score the explanations of a file with any two local models, into the table `scores`."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.compute as pc

from rlt_core.data.imports import EXPLANATION_FIELDS, ExplanationRow, read_explanations
from rlt_core.explanations import ModelPair
from rlt_core.progress import Progress
from rlt_core.rows import read_table, table_files, write_table
from rlt_core.sql.schemas import SCORES
from rlt_core.store import Workspace
from rlt_core.store.files import Files, sha256_of
from tasks.shards import LongWork, in_shards

Numbered = tuple[int, ExplanationRow]


def save_parquet(table: pa.Table, output: Path) -> None:
    """Write the table completely or not at all."""
    half_written = output.with_name(output.name + ".part")
    write_table(half_written, table)
    half_written.rename(output)


def score_file(
    models: ModelPair,
    input: Path,
    output: Path,
    progress: Progress,
    columns: Mapping[str, str] | None = None,
    save: Callable[[pa.Table, Path], None] = save_parquet,
) -> pa.Table:
    """Score every row of the input; row i of the output, which `save` writes, is row i of the
    input: its question, solution and explanation, then the columns of the table `scores`.
    `columns`: names of the input's columns, where they are not those of `read_explanations`.

    Returns the written table without its per-token lists. Shards commit beside the output
    (`{output}.work`, removed at the end), so that an interrupted call continues where it was.
    Raises UserError for bad rows, a folder that is no model, and models of different vocabularies;
    Stopped on request.
    """
    columns = columns or {}
    rows = list(enumerate(read_explanations(input, models.format, columns)))
    by_question: dict[str, list[Numbered]] = {}
    for number, row in rows:
        by_question.setdefault(row.question_id, []).append((number, row))
    shards = output.with_name(output.name + ".work")
    # Everything that determines the scores, so that shards of other work differ.
    parts = [*models.identity(), sha256_of(input), repr(sorted(columns.items()))]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    workspace = Workspace(Files(str(shards.absolute())), key)
    groups = list(by_question.values())
    with TemporaryDirectory() as folder:
        work = LongWork(Path(folder), workspace, progress)
        scorer = models.scorer()
        in_shards(
            work, "scores", groups, models.resources.shard_questions,
            lambda shard, progress: scorer([row for group in shard for _, row in group], progress),
            lambda group: max(len(row.text) for _, row in group),  # of the longest explanation
        )  # fmt: skip
        tables = [read_table(file) for file in table_files(work.out, "scores")]
    order = pa.array([number for group in groups for number, _ in group])
    table = pa.concat_tables(tables).take(pc.sort_indices(order))
    texts = zip(*((row.question, row.solution, row.text) for _, row in rows), strict=True)
    for place, (name, column) in enumerate(zip(EXPLANATION_FIELDS, texts, strict=False)):
        table = table.add_column(place, name, pa.array(column, pa.string()))
    table = table.replace_schema_metadata({"rlt.reward": models.spec.model_dump_json()})
    save(table, output)
    shutil.rmtree(shards)
    return table.drop_columns([f.name for f in SCORES if pa.types.is_list(f.type)])
