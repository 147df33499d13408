"""Read questions from generators, local files and data sets of the hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rlt_core.config import DataConfig, FieldMapping
from rlt_core.data.generators.arithmetic import arithmetic_rows
from rlt_core.data.generators.countdown import (
    EVALUATION_QUESTIONS,
    countdown_rows,
    small_countdown_rows,
)
from rlt_core.data.generators.running_totals import running_total_rows
from rlt_core.data.layouts import layout_of, row_of
from rlt_core.data.rawrow import RawRow, dropped_row, require_written
from rlt_core.data.row_files import (
    SUFFIXES,
    BadRow,
    Read,
    Record,
    checked,
    count_rows,
    in_memory,
    read_records,
    require_file,
)
from rlt_core.errors import UserError, first_line
from rlt_core.extensions import is_path, load
from rlt_core.hf_hub import card_licence, pinned, snapshot
from rlt_core.progress import Progress
from rlt_core.prompts.format import PromptFormat
from rlt_core.store.files import sha256_of

GENERATED: dict[str, tuple[int, Callable[[int, int], list[RawRow]]]] = {
    "arithmetic": (1, arithmetic_rows),
    "arithmetic-s1": (1, partial(arithmetic_rows, manner="s1")),
    "arithmetic-sky-t1": (1, partial(arithmetic_rows, manner="sky-t1")),
    "countdown": (1, countdown_rows),
    "countdown-small": (1, small_countdown_rows),
    "running-totals": (1, running_total_rows),
    "running-totals-perfect": (1, partial(running_total_rows, perfect=True)),
}
"""Generated sources: version, and function from a number of rows and a seed to the rows."""
HUB = "hub:"
HUB_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv", "*.md")
TRACE_FIELDS = FieldMapping(trace="trace")
HEADS = 100
"""Number of rows from which a layout is recognised."""
CHECKED_ROWS = 10_000
"""Number of rows that are read before a run: the whole of most files."""
PROGRESS_ROWS = 500
SILENT = Progress()
Numbered = tuple[int, Read]
Row = dict[str, Any]


def data_digest(data: DataConfig) -> str:
    """Return what identifies a source's content: bytes and type of a file, commit of a hub data
    set, version of a generator. Raises UserError."""
    if data.source in GENERATED:
        return f"{data.source}:{GENERATED[data.source][0]}"
    if data.source.startswith(HUB):
        repo = data.source.removeprefix(HUB)
        return f"{repo}@{pinned(repo, data.revision, 'dataset')}:{data.hub_split}"
    others = f", and not one of {', '.join(GENERATED)}, hub:org/name or module:function"
    return file_digest(data.source, "data.source", others)


def file_digest(source: str, field: str, others: str = "") -> str:
    """Return the content's digest and the type of a file of rows. Raises UserError, which ends in
    `others` where there is no file."""
    path = Path(source)
    require_file(path, field, others)
    return f"{sha256_of(path)}{path.suffix.lower()}"


@dataclass(frozen=True)
class Source:
    """The content of a source."""

    rows: list[RawRow]
    dropped: list[Row] = field(default_factory=list)
    """Rows that cannot be used, as rows of the table `dropped`."""
    found: str | None = None
    """Description of the layout if it was recognised, not configured."""


def read_source(
    data: DataConfig,
    spare: int = 0,
    format: PromptFormat | None = None,
    progress: Progress = SILENT,
    traces: bool = False,
) -> Source:
    """Return all rows of a source; `spare`: additional rows of a generated one; `traces`: a trace
    file (`trace_file`).

    Rows that cannot be used, or that contain tags of `format`, are left out. If there are more of
    them than `data.max_dropped` allows, raises UserError naming source, row, field and fix.
    """
    if data.source in GENERATED:
        return Source(_generate(data, spare))
    if data.conversations and data.split_at is not None:
        raise UserError("data.conversations and data.split_at exclude each other; set one of them")
    if data.split_at is not None and data.fields.trace is not None:
        raise UserError(
            "data.split_at takes the trace out of the solution: set data.fields.trace=null"
        )
    if data.source.startswith(HUB):
        repo = data.source.removeprefix(HUB)
        folder = snapshot(repo, pinned(repo, data.revision, "dataset"), "dataset", HUB_FILES)
        rows, licence = _hub_rows(folder, data), card_licence(folder)
    elif is_path(data.source):
        rows, licence = list(load(data.source)()), None
    else:
        path = Path(data.source)
        records, count = read_records(path), partial(count_rows, path)
        return _collect(records, data, data.source, count, format, progress, traces=traces)
    count = rows.__len__
    return _collect(in_memory(rows), data, data.source, count, format, progress, licence)


def found_layout(data: DataConfig) -> str | None:
    """Describe the recognised layout of a local file; None for other sources or if configured."""
    path = Path(data.source)
    if data.source in GENERATED or not path.is_file() or path.suffix.lower() not in SUFFIXES:
        return None
    heads, _ = heads_of(read_records(path))
    return layout_of(data, heads).found


def check_file(
    data: DataConfig, format: PromptFormat | None = None, traces: bool = False
) -> tuple[Source, bool]:
    """Return the first rows of a local file, and whether they are the whole file. Raises UserError
    for rows that cannot be used: more than `data.max_dropped` allows, or of a longer file all."""
    records, path = read_records(Path(data.source)), data.source
    lenient = data.replaced(max_dropped=1.0)
    first = islice(records, CHECKED_ROWS)
    source = _collect(first, lenient, path, lambda: CHECKED_ROWS, format, SILENT, traces=traces)
    whole = next(records, None) is None
    if whole or not source.rows:
        count = len(source.rows) + len(source.dropped)
        require_few(path, source.dropped, count, data.max_dropped)
    return source, whole


def is_file(source: str) -> bool:
    """Return whether a source is a local file: not generated, of the hub or a user's function."""
    return not (source in GENERATED or source.startswith(HUB) or is_path(source))


def trace_file(path: str, max_dropped: float) -> DataConfig:
    """Return how a trace file is read: with the names of `TRACE_FIELDS`, or a known layout."""
    return DataConfig(source=path, fields=TRACE_FIELDS, max_dropped=max_dropped)


def heads_of(records: Iterator[Numbered]) -> tuple[list[Record], Iterator[Numbered]]:
    """Return the readable ones among the first rows, and all rows."""
    first = list(islice(records, HEADS))
    heads = []
    for _, read in first:
        with suppress(BadRow):
            heads.append(checked(read))
    return heads, chain(first, records)


def _collect(
    records: Iterator[Numbered],
    data: DataConfig,
    source: str,
    count: Callable[[], int],
    format: PromptFormat | None,
    progress: Progress,
    licence: str | None = None,
    traces: bool = False,
) -> Source:
    """Return usable and dropped rows. `traces`: a trace file, whose rows all need a trace."""
    heads, records = heads_of(records)
    if traces and not any(data.fields.question in head for head in heads):
        untraced = data.fields.model_copy(update={"trace": None})
        data = data.model_copy(update={"fields": untraced})
    columns = frozenset(str(name) for head in heads for name in head)
    layout, expected = replace(layout_of(data, heads), columns=columns), count()
    rows: list[RawRow] = []
    dropped: list[Row] = []

    def convert(number: int, read: Read) -> RawRow:
        row = row_of(number, read(), layout, data, licence)
        if traces and row.trace is None:
            raise BadRow("empty", "it has no trace; add one or remove the row")
        if format is not None:
            require_written(row, format)
        return row

    for number, read in progress.over(records, expected, PROGRESS_ROWS):
        try:
            rows.append(checked(partial(convert, number, read)))
        except BadRow as fault:
            dropped.append(dropped_row(number, fault.reason, str(fault)))
    if not rows and not dropped:
        raise UserError(f"{source}: there is no row in it")
    require_few(source, dropped, len(rows) + len(dropped), data.max_dropped)
    return Source(rows, dropped, layout.found)


def require_few(source: str, dropped: Sequence[Row], count: int, most: float) -> None:
    """Raise UserError if more than the fraction `most` of `count` rows was dropped."""
    if len(dropped) > most * count:
        raise UserError(
            f"{source}, row {dropped[0]['row']}: {dropped[0]['detail']} ({len(dropped)} of {count} "
            f"rows cannot be used; data.max_dropped allows {100 * most:g}%)"
        )


def _generate(data: DataConfig, spare: int) -> list[RawRow]:
    if data.n_train is None:
        raise UserError(
            f"data.source={data.source!r} is generated: set the number of questions in data.n_train"
        )
    n = data.n_train + data.n_validation + data.n_test + spare
    # All problems differ, so at most these are dropped because an evaluation set has them.
    tested = EVALUATION_QUESTIONS if data.source.startswith("countdown") else 0
    return GENERATED[data.source][1](n + tested, data.seed)


def _hub_rows(folder: Path, data: DataConfig) -> Any:
    from datasets import load_dataset

    config, _, split = data.hub_split.rpartition("/")
    try:
        return load_dataset(str(folder), config or None, split=split)
    except Exception as error:  # its builders and parsers raise anything for a damaged file
        said = " ".join(str(error).strip().splitlines()[:2]) or first_line(error)
        fix = "; write data.hub_split=CONFIG/SPLIT" if "available configs" in said else ""
        raise UserError(f"{data.source}, data.hub_split={data.hub_split!r}: {said}{fix}") from None
