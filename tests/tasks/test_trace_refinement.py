"""The stage on a real store and server: what it keeps, drops, counts and never asks twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlt_core.config.endpoint import RefinementConfig
from rlt_core.data.imports import import_traces
from rlt_core.endpoint import KEY
from rlt_core.errors import UserError
from rlt_core.models import tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows
from rlt_core.stages import TraceRefinementConfig
from rlt_core.store import Ref, Store
from tasks.stage import NodeSpec
from tests.chat_server import KEY as SECRET
from tests.chat_server import Reply, completion, error, serve
from tests.tasks.nodes import committed, node_spec, run

FORMAT = load_format("tiny")
NEW = "new\u2028"
"""With a separator of lines that JSON does not escape."""
PROMPTER = Renderer(FORMAT, tiny_tokenizer(FORMAT))


def spec(tmp_path: Path, n: int = 6, **changes: Any) -> NodeSpec:
    """The node on `n` imported traces, two of them of one question."""
    tmp_path.mkdir(exist_ok=True)
    store, file = Store(str(tmp_path / "store")), tmp_path / "traces.csv"
    lines = [f"{max(i, 1)}+1,{max(i, 1) + 1},old {i}\n" for i in range(n)]
    file.write_text("question,solution,trace\n" + "".join(lines))
    traces = Ref(kind="traces", key="1" * 16)
    committed(store, traces, lambda out: import_traces(file, "raw", PROMPTER, out, 0.0, Progress()))
    model = committed(store, Ref(kind="model", key="2" * 16),
                      lambda out: PROMPTER.tokenizer.save_pretrained(out / "model"))  # fmt: skip
    inputs = {"traces": traces, "questions": traces, "tokenizer": model}
    config = TraceRefinementConfig(
        refinement=RefinementConfig(name="refined", model="m", **changes), format=FORMAT
    )
    return node_spec(store, "trace-refinement", config, inputs)


def refine(n: int, body: dict[str, Any]) -> Reply:
    """`old 3` becomes `new` and `3`, on two lines."""
    user = body["messages"][-1]["content"]
    return completion(f" {NEW}{user.split('old ')[1][0]}\n")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setenv("RLT_REFINE_PROMPT_PRICE", "2")
    monkeypatch.setenv("RLT_REFINE_COMPLETION_PRICE", "8")
    return monkeypatch


def no_file_holds_the_key(folder: Path) -> bool:
    return not any(SECRET.encode() in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_refined_traces_are_traces(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    node = spec(tmp_path)
    with serve(refine) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        manifest = run(node)
    store = Store(node.store)
    raw = store.manifest("traces", "1" * 16)
    assert raw
    before = {row["trace_id"]: row for row in read_rows(store.intact(raw), "traces")}
    after = read_rows(store.intact(manifest), "traces")
    assert [row["trace_id"] for row in after] == list(before)
    for row in after:
        assert row["teacher"] == "refined"
        assert row["text"] == before[row["trace_id"]]["text"].replace("old ", NEW)
        explanation = PROMPTER.split_completion(row["completion_ids"])
        assert explanation.closed and explanation.ids == row["token_ids"]
        assert explanation.text == row["text"]
    metrics = manifest.metrics
    assert (metrics["prompt_tokens"], metrics["completion_tokens"]) == (60, 30)
    assert metrics["cost"] == pytest.approx((60 * 2 + 30 * 8) / 1e6)
    assert no_file_holds_the_key(tmp_path)


def test_what_was_answered_is_never_asked_again(
    tmp_path: Path, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    node = spec(tmp_path)
    environment.setenv("RLT_REFINE_CONCURRENCY", "1")
    environment.setenv("RLT_REFINE_RETRIES", "0")
    with serve(lambda n, body: refine(n, body) if n < 3 else error(500)) as first:
        environment.setenv("RLT_REFINE_BASE_URL", first.url)
        with pytest.raises(UserError) as raised:
            run(node)
    with serve(refine) as second:
        environment.setenv("RLT_REFINE_BASE_URL", second.url)
        manifest = run(node)
    assert len(first.seen) == 4 and len(second.seen) == 3
    assert all(request not in first.seen[:3] for request in second.seen)
    assert manifest.metrics["traces"] == 6 and manifest.metrics["asked_now"] == 3
    assert manifest.metrics["prompt_tokens"] == 60
    printed = capfd.readouterr()
    assert SECRET not in f"{raised.value}{printed.out}{printed.err}"
    assert no_file_holds_the_key(tmp_path)


def test_a_refusal_is_dropped_and_listed(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        refused = "old 3" in body["messages"][-1]["content"]
        return completion(None, refusal="I will not") if refused else refine(n, body)

    with serve(reply) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        with pytest.raises(UserError, match="1 of 6 traces have no usable answer, more than"):
            run(spec(tmp_path / "strict"))
        manifest = run(spec(tmp_path / "lenient", max_dropped=0.2))
    out = Store(str(tmp_path / "lenient" / "store")).intact(manifest)
    texts = [row["text"] for row in read_rows(out, "traces")]
    assert len(texts) == 5 and all("new" in text for text in texts)
    (dropped,) = read_rows(out, "dropped")
    assert (dropped["row"], dropped["reason"]) == (4, "refused")
    assert "I will not" in dropped["detail"] and manifest.metrics["refused"] == 1
