"""Whatever a file, a setting or an answer contains: success or one clear error, soon.

The fast lane runs the same few examples each time, `make fuzz` many new ones (FUZZ_EXAMPLES). A
failure prints its example; it stays as an `@example` below.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rlt_core.config import DataConfig
from rlt_core.data.sources import found_layout, read_source, trace_file
from rlt_core.errors import UserError
from rlt_core.grading.grade import GRADERS, OUTCOMES, GradeItem
from rlt_core.grading.grader import Grader
from rlt_core.overrides import load_config
from rlt_core.prompts.format import PromptFormat, load_format
from rlt_core.store.files import Files
from rlt_core.store.manifest import manifest_at
from tests.sample_store import START

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
fuzz = settings(
    max_examples=EXAMPLES or 20,
    derandomize=not EXAMPLES,
    deadline=10_000,  # milliseconds: a hang fails
    suppress_health_check=list(HealthCheck),
    database=None,
)

DEEP = "[" * 100_000
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
TREE: st.SearchStrategy[Any] = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)


def clear(call: Callable[[], Any]) -> None:
    """Call; a UserError has to be one that can be shown."""
    try:
        call()
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)


def changed(tree: Any, path: list[int], value: Any) -> Any:
    """The tree with one of its values replaced."""
    if not path or not isinstance(tree, dict | list) or not tree:
        return value
    names = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    name = names[path[0] % len(names)]
    copy: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[name] = changed(tree[name], path[1:], value)
    return copy


PATH = st.lists(st.integers(0, 50), min_size=1, max_size=4)


def damaged(whole: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    """The bytes with some of them overwritten, and for a first edit of nothing, cut off."""
    for place, new in edits:
        at = place % (len(whole) + 1)
        whole = whole[:at] + new + whole[at + len(new) :] if new else whole[:at]
    return whole


EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=4)), max_size=4)


# ---------------------------------------------------------------- data files
COLUMNS = st.sampled_from(
    ["question", "solution", "answer", "trace", "problem", "messages", "conversations", "x", "a.b",
     "instruction", "input", "output", "prompt", "reward_model"]
)  # fmt: skip
TURNS = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), SCALAR, max_size=3),
    max_size=3,
)
ROWS = st.lists(
    st.dictionaries(COLUMNS, TREE | TURNS | st.just("1+1 = 2"), max_size=4) | TREE, max_size=4
)
CELL = TEXT | COLUMNS | TURNS.map(repr) | TREE.map(repr)


def read_in_every_way(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"data{suffix}"
        file.write_bytes(content)
        data = DataConfig(source=str(file), max_dropped=1.0)
        format = load_format("tiny")
        for read in (
            lambda: read_source(data, format=format),
            lambda: found_layout(data),
            lambda: read_source(trace_file(str(file), 0.0), format=format, traces=True),
        ):
            clear(read)


@fuzz
@given(ROWS, st.sampled_from([".jsonl", ".json"]), EDITS)
@example([], ".jsonl", [(0, DEEP.encode())])
@example([], ".json", [(0, DEEP.encode())])
def test_json_files(rows: list[Any], suffix: str, edits: list[tuple[int, bytes]]) -> None:
    lines = [json.dumps(row) for row in rows]
    text = "\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]"
    read_in_every_way(damaged(text.encode("utf-8", "surrogatepass"), edits), suffix)


@fuzz
@given(st.lists(st.lists(CELL, max_size=4), max_size=4), st.sampled_from(",;\t"), EDITS)
def test_csv_files(rows: list[list[str]], sign: str, edits: list[tuple[int, bytes]]) -> None:
    text = "\n".join(sign.join(row) for row in rows)
    read_in_every_way(damaged(text.encode("utf-8", "surrogatepass"), edits), ".csv")


@fuzz
@given(st.lists(st.tuples(COLUMNS, SCALAR), min_size=1, max_size=4), EDITS)
def test_parquet_files(columns: list[tuple[str, Any]], edits: list[tuple[int, bytes]]) -> None:
    with suppress(pa.ArrowException, UnicodeError, OverflowError):
        table = pa.table([pa.array([value]) for _, value in columns], [name for name, _ in columns])
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, write_page_checksum=True)
        read_in_every_way(damaged(sink.getvalue().to_pybytes(), edits), ".parquet")


# ---------------------------------------------------------------- settings
FIELDS = st.sampled_from(
    ["data.n_train", "seeds", "reward.alpha", "base_model", "base_model.kind", "imports.models.a",
     "resources.stages.evaluation.gpus", "data.fields", "prompt_format", "evaluation.tasks",
     "student_sft.learning_rate", "data.source"]
)  # fmt: skip


@fuzz
@given(st.lists(st.tuples(FIELDS | TEXT, TREE | TEXT), min_size=1, max_size=3))
@example([("seeds", DEEP)])
@example([("seeds", "9" * 5000)])
@example([("a." * 2000, 1)])
@example([("reward.alpha", float("nan"))])
@example([("reward.alpha", "1e999")])
def test_settings(pairs: list[tuple[str, Any]]) -> None:
    values = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in pairs
    ]
    clear(lambda: load_config("smoke", values))


@fuzz
@given(PATH, TREE, EDITS)
@example([0], None, [(0, DEEP.encode())])
@example([0], None, [(0, b"\xff\xfe")])
@example([0], {"a": 1}, [])
def test_prompt_formats(path: list[int], value: Any, edits: list[tuple[int, bytes]]) -> None:
    tree = json.loads(load_format("tiny").model_dump_json())
    text = json.dumps(changed(tree, path, value))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "format.json"
        file.write_bytes(damaged(text.encode(), edits))
        clear(lambda: load_format(str(file)))
    assert isinstance(load_format("tiny"), PromptFormat)


# ---------------------------------------------------------------- manifests
MANIFEST: dict[str, Any] = {
    "schema_version": 1, "ref": {"kind": "scores", "key": "0" * 16}, "attempt": "a" * 12,
    "stage": "trace-scoring", "stage_version": 1, "label": "trace-scoring", "profile": "tiny",
    "seed": 0, "config": {"a": {"b": [1]}},
    "inputs": {"traces": {"kind": "traces", "key": "1" * 16}},
    "files": [{"path": "scores.parquet", "sha256": "0" * 64, "bytes": 1, "rows": 1}],
    "metrics": {"m": 1.0}, "packages": {"python": "3"}, "git_commit": None, "flow_run_id": None,
    "started_at": START.isoformat(), "finished_at": START.isoformat(), "seconds": 1.0,
    "gpu_seconds": 0.0, "device": "cpu", "threads": 1,
}  # fmt: skip


@fuzz
@given(PATH, TREE, EDITS)
@example([0], 2, [(0, DEEP.encode())])
@example([0], 99, [])
@example([0], "9" * 5000, [])
def test_manifests(path: list[int], value: Any, edits: list[tuple[int, bytes]]) -> None:
    text = json.dumps(changed(MANIFEST, path, value)).encode("utf-8", "surrogatepass")
    clear(
        lambda: manifest_at(
            Files("store"), f"artifacts/scores/{'0' * 16}.json", damaged(text, edits)
        )
    )


# ---------------------------------------------------------------- answers
@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=1.5, max_workers=1) as grader:
        yield grader


MATHEMATICS = st.lists(
    st.sampled_from(
        ["\\boxed{", "}", "{", "\\frac", "1", "2", "10^", "^", "(", ")", "[", "]", ",", "\\sqrt",
         "x", "=", "-", "\\pm", "\\infty", "e", "%", "°", " or ", "\\begin{pmatrix}", "&", "\\\\",
         "\\end{pmatrix}", "0.", "1/", "!", "9" * 40, "**", "Answer: ", "####", ":", "_2",
         "\\text{"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


@fuzz
@given(
    solution=st.none() | TEXT | MATHEMATICS,
    answer=st.none() | TEXT | MATHEMATICS,
    metadata=st.none() | TEXT | TREE.map(json.dumps),
    name=st.sampled_from(GRADERS),
)
@example(solution="\\boxed{9^{9^{9^9}}}", answer="1", metadata=None, name="math")
@example(solution="(" * 5000, answer="(" * 5000, metadata=None, name="math")
@example(solution="1", answer="1", metadata='{"accepted": 3}', name="math")
@example(
    solution="9**9**9**9", answer="1", metadata='{"numbers": [9], "target": 9}', name="countdown"
)
def test_answers(
    grader: Grader, solution: str | None, answer: str | None, metadata: str | None, name: str
) -> None:
    item = GradeItem(solution, answer, name, metadata)
    [grade] = grader.grade_many([item])
    assert grade.outcome in OUTCOMES
