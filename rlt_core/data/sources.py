"""Where questions come from: generators, local files, data sets of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from rlt_core.config import DataConfig, FieldMapping
from rlt_core.data.files import SUFFIXES, Record, read_records
from rlt_core.data.rawrow import RawRow
from rlt_core.errors import UserError
from rlt_core.hub import UNPINNED, pinned
from rlt_core.snapshots import snapshot
from rlt_core.store.files import sha256_of

GENERATED = {
    "arithmetic": 1, "arithmetic-s1": 1, "arithmetic-sky-t1": 1, "countdown": 1,
    "countdown-small": 1,
}  # fmt: skip
"""Generated sources and their versions."""
HUB = "hub:"
HUB_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.md")
CONVERSATION = re.compile(
    r"\s*<\|begin_of_thought\|>(.*)<\|end_of_thought\|>"
    r"\s*<\|begin_of_solution\|>(.*)<\|end_of_solution\|>\s*",
    re.DOTALL,
)


def data_digest(data: DataConfig) -> str:
    """What identifies the content of a source: a file by its bytes and type, a hub data set by its
    commit, a generator by its version. Raises UserError."""
    if data.source in GENERATED:
        return f"{data.source}:{GENERATED[data.source]}"
    if data.source.startswith(HUB):
        repo = data.source.removeprefix(HUB)
        return f"{repo}@{pinned(repo, data.revision, 'dataset')}:{data.hub_split}"
    path = Path(data.source)
    if not path.is_file():
        raise UserError(
            f"data.source={data.source!r}: no such file (paths start at {Path.cwd()}), and not one "
            f"of {', '.join(GENERATED)} or hub:org/name"
        )
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    return f"{sha256_of(path)}{path.suffix}"


def read_source(data: DataConfig, spare: int = 0) -> list[RawRow]:
    """All rows of a source, checked; of a generated one so many more than are asked for.

    Raises UserError naming source, row, field and the mend.
    """
    if data.source in GENERATED:
        return _generate(data, spare)
    if data.conversations and data.split_at is not None:
        raise UserError("data.conversations and data.split_at exclude each other; set one of them")
    if data.split_at is not None and data.fields.trace is not None:
        raise UserError(
            "data.split_at takes the trace out of the solution: set data.fields.trace=null"
        )
    if data.source.startswith(HUB):
        folder = _hub_folder(data)
        records = _hub_records(folder, data)
        rows = list(_mapped(records, data, data.source, _card_licence(folder)))
    else:
        rows = list(_mapped(read_records(Path(data.source)), data, data.source))
    if not rows:
        raise UserError(f"{data.source}: there is no row in it")
    return rows


def read_mapped(path: Path, fields: FieldMapping) -> list[RawRow]:
    """All rows of a local file whose fields must have these names. Raises UserError."""
    data = DataConfig(fields=fields)
    return list(_mapped(read_records(path), data, str(path), names_are_free=False))


def fetch_dataset(repo: str, revision: str) -> Path:
    """The plain data files of a hub data set at a commit; downloads what the cache lacks."""
    return snapshot(repo, revision, "dataset", HUB_FILES)


def _generate(data: DataConfig, spare: int) -> list[RawRow]:
    if data.n_train is None:
        raise UserError(f"data.source={data.source!r} is generated: say how many in data.n_train")
    from rlt_core.data.arithmetic import arithmetic_rows
    from rlt_core.data.countdown import (
        EVALUATION_QUESTIONS,
        countdown_rows,
        small_countdown_rows,
    )

    n = data.n_train + data.n_validation + data.n_test + spare
    # Problems differ, so at most so many are dropped because they are tested elsewhere.
    tested = EVALUATION_QUESTIONS
    match data.source:
        case "arithmetic":
            return arithmetic_rows(n, data.seed)
        case "arithmetic-s1":
            return arithmetic_rows(n, data.seed, "s1")
        case "arithmetic-sky-t1":
            return arithmetic_rows(n, data.seed, "sky-t1")
        case "countdown":
            return countdown_rows(n + tested, data.seed)
    return small_countdown_rows(n + tested, data.seed)


def _hub_folder(data: DataConfig) -> Path:
    repo = data.source.removeprefix(HUB)
    revision = pinned(repo, data.revision, "dataset")
    if revision == UNPINNED:
        raise UserError(
            f"{data.source}: no commit is pinned; `rlt fetch` downloads the newest and pins it, or "
            "name one in data.revision"
        )
    return fetch_dataset(repo, revision)


def _card_licence(folder: Path) -> str | None:
    """What a data set's card says, if it has one that says it."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    licence = ((metadata_load(card) or {}) if card.is_file() else {}).get("license")
    return ", ".join(licence) if isinstance(licence, list) else licence


def _hub_records(folder: Path, data: DataConfig) -> Iterator[tuple[int, Record]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        rows = load_dataset(str(folder), split=data.hub_split)
    except (ValueError, FileNotFoundError, DatasetNotFoundError, DatasetGenerationError) as error:
        raise UserError(f"{data.source}, data.hub_split={data.hub_split!r}: {error}") from None
    return enumerate(rows, start=1)


# ---------------------------------------------------------------- fields
def _mapped(
    records: Iterable[tuple[int, Record]],
    data: DataConfig,
    source: str,
    licence: str | None = None,
    names_are_free: bool = True,
) -> Iterator[RawRow]:
    """`names_are_free`: the user may say in `data.fields` which field holds what."""
    fields = data.fields
    text = partial(_text, names_are_free=names_are_free)
    for number, record in records:
        place = f"{source}, row {number}"
        trace = system = None
        if data.conversations:
            question, trace, solution = _conversation(record, place)
            system = record.get("system") or None
        else:
            question = text(record, "question", fields.question, place)
            solution = text(record, "solution", fields.solution, place)
            if data.split_at is not None:
                trace, solution = _split(solution, data.split_at, fields.solution, place)
            elif fields.trace is not None:
                trace = text(record, "trace", fields.trace, place)
        answer = fields.answer and text(record, "answer", fields.answer, place)
        column = fields.licence
        row_licence = text(record, "licence", column, place) if column else licence
        yield RawRow(number, question, solution, trace, answer, licence=row_licence, system=system)


def _field(record: Record, name: str, column: str, place: str, names_are_free: bool = True) -> Any:
    if column in record:
        return record[column]
    near = get_close_matches(column, map(str, record), n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    mend = (
        f"Set data.fields.{name} to the field that holds the {name}."
        if names_are_free
        else f"Rename the field that holds the {name} to {column!r}."
    )
    has = ", ".join(map(str, record)) or "none"
    raise UserError(f"{place}: no field {column!r} (it has {has}){hint or '.'} {mend}")


def _text(record: Record, name: str, column: str, place: str, names_are_free: bool) -> str:
    """A field's text without surrounding white space; numbers are answers too, and a list of
    texts is a trace (s1K), each beginning a line."""
    value = _field(record, name, column, place, names_are_free)
    if value is None:
        value = ""  # null, an empty cell of a Parquet file
    if name == "trace" and isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = "\n".join(value)
    if name in ("solution", "answer") and type(value) in (int, float):
        value = str(value)
    if not isinstance(value, str):
        raise UserError(
            f"{place}: the {name} (field {column!r}) is {type(value).__name__}, not text"
        )
    if not value.strip():
        raise UserError(
            f"{place}: the {name} (field {column!r}) is empty; fill it in or remove the row"
        )
    return value.strip()


def _split(text: str, marker: str, column: str, place: str) -> tuple[str | None, str]:
    """(trace, solution) around the last marker; a solution without working has no trace."""
    trace, found, solution = text.rpartition(marker)
    if not found or not solution.strip():
        raise UserError(
            f"{place}: field {column!r} has no solution after the marker {marker!r} (data.split_at)"
        )
    return trace.strip() or None, solution.strip()


def _conversation(record: Record, place: str) -> tuple[str, str, str]:
    """(question, trace, solution) of a row of Bespoke-Stratos-17k or Sky-T1_data_17k."""
    turns = _field(record, "question", "conversations", place)
    try:
        said = {turn["from"]: turn["value"] for turn in turns}
        question, reply = said["user"], said["assistant"]
    except (TypeError, KeyError):
        raise UserError(
            f"{place}: `conversations` must be a list of {{from: user, value}} and "
            "{from: assistant, value}"
        ) from None
    parts = CONVERSATION.fullmatch(reply)
    if parts is None or not (question.strip() and parts[1].strip() and parts[2].strip()):
        raise UserError(
            f"{place}: expected a question, and a reply of the form "
            "<|begin_of_thought|>…<|end_of_thought|> <|begin_of_solution|>…<|end_of_solution|>, "
            "none of them empty"
        )
    return question.strip(), parts[1].strip(), parts[2].strip()
