"""`rlt init`: look at a file of questions and write a config for it that fits this machine."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from flows.cli.terminal import print
from rlt_core import gpus
from rlt_core.config import DataConfig, FieldMapping
from rlt_core.data.layouts import layout_of
from rlt_core.data.row_files import BadRow, Record, checked, read_all, read_records, value_of
from rlt_core.data.sources import heads_of, read_source
from rlt_core.errors import UserError
from rlt_core.overrides import load_config

NAMES = {
    "question": ("question", "problem", "prompt", "instruction", "query", "input"),
    "solution": ("solution", "answer", "final_answer", "output", "response", "completion"),
    "trace": ("trace", "reasoning", "thinking", "thought", "cot", "rationale", "explanation"),
    "answer": ("answer", "final_answer"),
}
"""What people call a column, most usual names first."""
OPTIONS = {"choices", "options"}
"""Columns whose text a question cannot be answered without."""
MARKER = "####"
"""GSM8K's mark between the working and the final answer."""
CHARS_PER_TOKEN = 3.5
"""Where no tokenizer is at hand; an assumption for English text."""
HELD_OUT = 0.1
"""Share of the questions for validation and for the test, each at most the profile's own number."""


def init(
    file: Annotated[Path, typer.Argument(help="JSONL, JSON, CSV or Parquet with questions.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Config to write.")] = Path(
        "rlt.toml"
    ),
    test: Annotated[
        Path | None, typer.Option("--test", help="File with the held-out test questions.")
    ] = None,
) -> None:
    """Look at a file of questions and write a config for it that fits this machine."""
    if output.exists():
        raise UserError(f"{output} exists; remove it, or name another with --output")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    data = recognised(file)
    source = read_source(data.replaced(max_dropped=1.0))
    if not source.rows:
        first = source.dropped[0] if source.dropped else {"row": 0, "detail": "there are no rows"}
        raise UserError(f"{file}: no usable row; row {first['row']}: {first['detail']}")
    rows, dropped = len(source.rows), len(source.dropped)
    tokens = [(len(row.question) + len(row.solution)) / CHARS_PER_TOKEN for row in source.rows]
    median, most = np.percentile(tokens, 50), max(tokens)
    memory = gpu_gib()
    profile = "single-gpu" if memory else "laptop"
    tables: dict[str, dict[str, Any]] = {
        "data": _data_table(data, file, test, rows, load_config(profile).data)
    }
    if all(row.trace is None for row in source.rows):
        tables["teacher_sft"] = {"traces": "none"}
    if dropped / (rows + dropped) > data.max_dropped:
        tables["data"]["max_dropped"] = round(dropped / (rows + dropped) + 0.01, 2)
    tables["resources"] = {"gpu_gib": memory} if memory else {"threads": 2}
    lines = [f"profile = {json.dumps(profile)}"]
    for name, table in tables.items():  # JSON's texts and numbers are TOML's
        values = (f"{field} = {json.dumps(v, ensure_ascii=False)}" for field, v in table.items())
        lines += ["", f"[{name}]", *values]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{file}: {rows} usable questions, {dropped} unusable")
    for reason, count in Counter(row["reason"] for row in source.dropped).most_common():
        example = next(row for row in source.dropped if row["reason"] == reason)
        print(f"  {reason}: {count}, first in row {example['row']}: {example['detail']}")
    if not memory:
        print(f"  {tables['data']['n_train']} are trained on, since there is no GPU (data.n_train)")
    print(f"question, trace and solution: about {median:.0f} tokens, at most {most:.0f}")
    for line in [f"read: {source.found}"] if source.found else columns_of(file, data):
        print(f"  {line}")
    print(f"wrote {output} (profile {profile}); next:")
    print(f"  rlt plan --config {output}\n  rlt run --config {output}")


def recognised(file: Path) -> DataConfig:
    """Return how to read a file: a layout that is known, or columns by their usual names.

    Raises UserError, naming the columns, if question or solution is not found.
    """
    heads, _ = heads_of(read_records(file))
    heads = heads or list(islice(read_all(file, lambda _, row: row), 1))  # names the first bad row
    data = DataConfig(source=str(file))
    columns = list(dict.fromkeys(str(name) for head in heads for name in head))
    lower = {name.strip().lower(): name for name in reversed(columns)}
    layout = layout_of(data, heads)
    if layout.chat:
        return data
    if options := OPTIONS & lower.keys():
        raise UserError(
            f"{file}: column {lower[min(options)]!r} has the options of multiple-choice questions, "
            "which would not be shown; write them into the question, and rename the column"
        )
    found: dict[str, str] = {}
    for field in ("trace",) if layout.found else NAMES:
        for name in NAMES[field]:
            if name in lower and lower[name] not in found.values():
                found.setdefault(field, lower[name])
    missing = [name for name in ("question", "solution") if name not in found]
    if missing and not layout.found:
        raise UserError(
            f"{file}: no column looks like the {' and the '.join(missing)}; it has "
            f"{', '.join(columns)}. Rename one, or tell `rlt run` or `rlt teach`: "
            f"--set data.fields.{missing[0]}=COLUMN"
        )
    answers = (_value(head, found.get("answer", "")) for head in heads)
    if not all(isinstance(one, str | int | float | list | None) for one in answers):
        found.pop("answer", None)
    solution = found.get("solution", layout.fields.solution)
    if 2 * sum(MARKER in str(_value(head, solution)) for head in heads) > len(heads):
        found.pop("trace", None)
        return data.replaced(fields=FieldMapping(**found), split_at=MARKER)
    return data.replaced(fields=FieldMapping(**found))


def _value(head: Record, column: str) -> Any:
    """Return what a row has in a column; () if that cannot be read."""
    with suppress(BadRow, KeyError):
        return checked(lambda: value_of(head, column))
    return ()


def columns_of(file: Path, data: DataConfig) -> Iterator[str]:
    """Yield which column is used for what, and those that are not used."""
    used = {name: column for name, column in data.fields.model_dump().items() if column}
    yield from (f"{name}: column {column!r}" for name, column in used.items())
    heads, _ = heads_of(read_records(file))
    columns = dict.fromkeys(str(name) for head in heads for name in head)
    if others := [name for name in columns if name not in used.values()]:
        yield f"not used: {', '.join(map(repr, others))}"


def _data_table(
    data: DataConfig, file: Path, test: Path | None, rows: int, profile: DataConfig
) -> dict[str, Any]:
    part = max(1, int(HELD_OUT * rows))
    table: dict[str, Any] = {"source": str(file)}
    if test:
        recognised(test)
        table["test_source"] = str(test)
    n_test = profile.n_test if test else min(profile.n_test, part)
    table |= {"n_validation": min(profile.n_validation, part), "n_test": n_test}
    held_out = table["n_validation"] + (0 if test else n_test)
    if rows <= held_out:
        raise UserError(
            f"{file}: {rows} usable questions; {held_out + 1} are needed at least, of which "
            f"{held_out} are held out for validation{'' if test else ' and test'}"
        )
    if profile.n_train:
        table["n_train"] = min(profile.n_train, rows - held_out)
    if data.split_at:
        table["split_at"] = data.split_at
    changed = data.fields.model_dump(exclude_defaults=True)
    return table | {f"fields.{name}": column for name, column in changed.items()}


def gpu_gib() -> float | None:
    """Return the memory in GiB of the first GPU that this process may use; None without one."""
    if not (mine := gpus.here()):
        return None
    command = ["nvidia-smi", "-i", next(iter(mine.values())), "--query-gpu=memory.total",
               "--format=csv,noheader,nounits"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    first = done.stdout.split("\n")[0].strip()
    return round(int(first) / 1024, 1) if done.returncode == 0 and first.isdigit() else None
