"""The stages that ask an LLM, on a real store and server: what they keep, drop, count and never
ask twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlt_core.config.endpoint import EndpointTeacherConfig, RefinementConfig
from rlt_core.data.imports import import_traces
from rlt_core.endpoint import KEY
from rlt_core.errors import Stopped, UserError
from rlt_core.models import tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.report.terminal import alarms_of
from rlt_core.rows import read_rows
from rlt_core.stages import EndpointGenerationConfig, TraceRefinementConfig
from rlt_core.store import Ref, Store
from tasks.execute import execute
from tasks.stage import NodeSpec
from tests.chat_server import KEY as SECRET
from tests.chat_server import Reply, completion, error, serve
from tests.tasks.nodes import committed, node_spec, run

FORMAT = load_format("tiny")
NEW = "new\u2028"
"""With a separator of lines that JSON does not escape."""
PROMPTER = Renderer(FORMAT, tiny_tokenizer(FORMAT))
BOTH = pytest.mark.parametrize("stage", ["trace-refinement", "endpoint-generation"])


def spec(tmp_path: Path, stage: str = "trace-refinement", **changes: Any) -> NodeSpec:
    """A node with six traces to write: of six imported ones, two of them of one question; or three
    for each of two questions."""
    tmp_path.mkdir(exist_ok=True)
    store, file = Store(str(tmp_path / "store")), tmp_path / "traces.csv"
    rows = range(6) if stage == "trace-refinement" else (1, 2)
    lines = [f"{max(i, 1)}+1,{max(i, 1) + 1},old {i}\n" for i in rows]
    file.write_text("question,solution,trace\n" + "".join(lines))
    traces = Ref(kind="traces", key="1" * 16)
    committed(store, traces, lambda out: import_traces(file, "raw", PROMPTER, out, 0.0, Progress()))
    model = committed(store, Ref(kind="model", key="2" * 16),
                      lambda out: PROMPTER.tokenizer.save_pretrained(out / "model"))  # fmt: skip
    inputs = {"questions": traces, "tokenizer": model}
    if stage == "trace-refinement":
        refinement = RefinementConfig(name="refined", model="m", **changes)
        config: Any = TraceRefinementConfig(refinement=refinement, format=FORMAT)
        return node_spec(store, stage, config, inputs | {"traces": traces})
    teacher = EndpointTeacherConfig(name="gpt", model="m", **{"n": 3} | changes)
    config = EndpointGenerationConfig(teacher=teacher, format=FORMAT, seed=0)
    return node_spec(store, stage, config, inputs)


def refine(n: int, body: dict[str, Any]) -> Reply:
    """`old 3` becomes `new` and `3`, on two lines; without an old trace the number is 9."""
    old = [*body["messages"][-1]["content"].split("old "), "9"]
    return completion(f" {NEW}{old[1][0]}\n")


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


def test_an_explanation_is_a_trace_of_each_sample(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    node = spec(tmp_path, "endpoint-generation", seed=5, top_p=0.9)
    with serve(lambda n, body: completion(f"text {body['seed']}\n")) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        manifest = run(node)
    out = Store(node.store).intact(manifest)
    questions = read_rows(Store(node.store).intact(Store(node.store).find("1" * 16)), "questions")
    rows = read_rows(out, "traces")
    ids = [row["question_id"] for row in questions for _ in range(3)]
    assert [row["trace_id"] for row in rows] == [f"{id}-{i % 3}" for i, id in enumerate(ids)]
    assert [row["text"] for row in rows] == ["text 5", "text 6", "text 7"] * 2
    assert {row["teacher"] for row in rows} == {"gpt"} and read_rows(out, "dropped") == []
    for row in rows:
        explanation = PROMPTER.split_completion(row["completion_ids"])
        assert (explanation.ids, explanation.text) == (row["token_ids"], row["text"])
    for body in server.seen:
        user = body["messages"][-1]["content"]
        assert "1+1" in user or ("2+1" in user and "solution:\n3" in user)
        assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
    metrics = manifest.metrics
    assert (metrics["questions"], metrics["traces"], metrics["requests"]) == (2, 6, 6)
    assert alarms_of(metrics) == ""
    assert (metrics["prompt_tokens"], metrics["completion_tokens"]) == (60, 30)
    assert metrics["mean_tokens"] == sum(row["completion_tokens"] for row in rows) / 6


@BOTH
def test_an_endpoint_that_rejects_everything_is_soon_left_alone(
    stage: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"n": 50} if stage == "endpoint-generation" else {}
    node = spec(tmp_path, stage, max_dropped=1.0, **changes)
    with serve(lambda n, body: error(400)) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        with pytest.raises(
            UserError, match=r"no usable answer .*; the last: rejected, .*: 400 BadReq"
        ):
            run(node)
        assert len(server.seen) < 30
    with serve(refine) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        assert run(node).metrics["asked_now"] == len(server.seen)


@BOTH
def test_no_trace_at_all_is_no_result(
    stage: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    with serve(lambda n, body: completion("")) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        with pytest.raises(
            UserError, match=r"6 of 6 traces have no usable answer .*; the last: empty"
        ):
            run(spec(tmp_path, stage, max_dropped=1.0))


REFUSED_SEED = json.dumps({"error": {"code": "unsupported_parameter", "param": "seed"}}).encode()


def test_samples_are_requests_of_their_own_where_no_seed_is_taken(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        return (400, {}, REFUSED_SEED) if "seed" in body else completion(f"text {n}")

    with serve(reply) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        with pytest.raises(UserError, match=r"400 unsupported_parameter .*null sends none"):
            run(spec(tmp_path / "seeded", "endpoint-generation"))
        server.seen.clear()
        node = spec(tmp_path / "unseeded", "endpoint-generation", seed=None)
        manifest = run(node)
    texts = {row["text"] for row in read_rows(Store(node.store).intact(manifest), "traces")}
    assert len(texts) == 6 == len(server.seen)


@BOTH
def test_what_was_answered_is_never_asked_again(
    stage: str, tmp_path: Path, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without a seed the samples of a question are equal requests, told apart by their number.
    node = spec(tmp_path, stage, seed=None)
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
    asked = Counter(json.dumps(body) for body in [*first.seen[:3], *second.seen])
    once = 1 if stage == "trace-refinement" else 3
    assert set(asked.values()) == {once}, "a lost answer is asked for again, no other"
    assert manifest.metrics["traces"] == 6 and manifest.metrics["asked_now"] == 3
    if stage == "endpoint-generation":
        assert alarms_of(manifest.metrics) == "alarm: equal samples", "it ignores the temperature"
    assert manifest.metrics["prompt_tokens"] == 60
    printed = capfd.readouterr()
    assert SECRET not in f"{raised.value}{printed.out}{printed.err}"
    assert no_file_holds_the_key(tmp_path)


@BOTH
def test_a_stop_loses_no_answer(
    stage: str, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    node = spec(tmp_path, stage)
    environment.setenv("RLT_REFINE_CONCURRENCY", "2")
    with serve(refine) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        stopping = Progress(should_stop=lambda: len(server.seen) > 2)
        with pytest.raises(Stopped):
            execute(node.model_dump(mode="json"), stopping)
        assert len(server.seen) < 6
        run(node)
        assert len(server.seen) == 6


def test_a_refusal_is_dropped_and_listed(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        refused = "old 3" in body["messages"][-1]["content"]
        return completion(None, refusal="I will not") if refused else refine(n, body)

    with serve(reply) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        with pytest.raises(UserError, match="1 of 6 traces have no usable answer"):
            run(spec(tmp_path / "strict"))
        manifest = run(spec(tmp_path / "lenient", max_dropped=0.2))
    out = Store(str(tmp_path / "lenient" / "store")).intact(manifest)
    texts = [row["text"] for row in read_rows(out, "traces")]
    assert len(texts) == 5 and all("new" in text for text in texts)
    (dropped,) = read_rows(out, "dropped")
    assert (dropped["row"], dropped["reason"]) == (4, "refused")
    assert "I will not" in dropped["detail"] and manifest.metrics["refused"] == 1


def test_unusable_explanations_are_listed_and_the_others_stay(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    replies: list[Reply] = [
        completion("kept"), completion(" \n"), completion("half", "length"),
        completion(f"a{FORMAT.explanation_close}b"), error(422), completion("too"),
    ]  # fmt: skip
    with serve(lambda n, body: replies[n]) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        environment.setenv("RLT_REFINE_CONCURRENCY", "1")
        node = spec(tmp_path, "endpoint-generation", max_dropped=0.7)
        manifest = run(node)
    out = Store(node.store).intact(manifest)
    kept, dropped = read_rows(out, "traces"), read_rows(out, "dropped")
    assert [(row["sample"], row["text"]) for row in kept] == [(0, "kept"), (2, "too")]
    reasons = [(row["row"], row["reason"]) for row in dropped]
    assert reasons == [(2, "empty"), (3, "cut"), (4, "tagged"), (5, "rejected")]
    assert dropped[0]["detail"].startswith(f"{kept[0]['question_id']}-1: ")
    assert no_file_holds_the_key(tmp_path)
