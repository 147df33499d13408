"""A budget is shared by the nodes of a run, holds for all attempts and loses nothing."""

import time
from pathlib import Path
from typing import Any

import pytest

from flows.cli.run import compute
from flows.planning import Plan
from rlt_core.budget import TokenBudget
from rlt_core.config import GenerationConfig, ScratchModel
from rlt_core.config.endpoint import EndpointTeacherConfig
from rlt_core.errors import UserError
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.stages import EndpointGenerationConfig, TraceGenerationConfig
from rlt_core.store import Ref, Store
from tasks.stage import NodeSpec
from tests.chat_server import Reply, completion, serve
from tests.sample_store import row
from tests.tasks.nodes import committed, node_spec, run, table

FORMAT = load_format("tiny")
ANSWER = 15
"""Tokens of each prompt and answer together."""


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Ref]:
    """Three questions and a tiny random model."""
    store, tokenizer = Store(str(tmp_path / "store")), tiny_tokenizer(FORMAT)
    rows = [
        row("questions", question_id=f"q{i}", split="train", question=f"{i}+1", solution=f"{i + 1}")
        for i in range(3)
    ]
    model = new_model(ScratchModel(layers=1, width=16, heads=2, max_positions=512), tokenizer)
    return {
        "questions": committed(store, Ref(kind="dataset", key="1" * 16), table("questions", rows)),
        "tokenizer": committed(store, Ref(kind="model", key="2" * 16),
                               lambda out: save_model(model, tokenizer, out / "model")),
    }  # fmt: skip


@pytest.fixture
def nodes(inputs: dict[str, Ref], tmp_path: Path) -> list[NodeSpec]:
    """Two nodes with six requests each."""
    return [
        node_spec(
            Store(str(tmp_path / "store")),
            "endpoint-generation",
            EndpointGenerationConfig(
                teacher=EndpointTeacherConfig(name=name, model="m", n=2), format=FORMAT, seed=0
            ),
            inputs,
        )
        for name in ("one", "two")
    ]


def within(nodes: list[NodeSpec], which: int, **limit: Any) -> NodeSpec:
    """A node with a budget that it shares with the others."""
    keys = tuple(node.key for node in nodes)
    budget = TokenBudget(**{"tokens": None, "usd": None} | limit, nodes=keys)
    return nodes[which].model_copy(update={"budget": budget})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("RLT_REFINE_KEY", "none")
    monkeypatch.setenv("RLT_REFINE_CONCURRENCY", "1")
    monkeypatch.setenv("RLT_REFINE_PROMPT_PRICE", "2e6")  # of a million: 2 each
    monkeypatch.setenv("RLT_REFINE_COMPLETION_PRICE", "8e6")
    return monkeypatch


def answer(n: int, body: dict[str, Any]) -> Reply:
    return completion("because")


@pytest.mark.parametrize(("unit", "each"), [("tokens", ANSWER), ("usd", 10 * 2 + 5 * 8)])
def test_requests_stop_at_the_budget_and_go_on_with_a_larger_one(
    unit: str, each: int, nodes: list[NodeSpec], environment: pytest.MonkeyPatch
) -> None:
    def stopped(which: int, requests: int, message: str) -> None:
        with pytest.raises(UserError, match=message) as raised:
            run(within(nodes, which, **{unit: requests * each}))
        assert str(raised.value).startswith(f"{requests * each} ")
        assert f"of resources.budget_{unit}={requests * each} " in str(raised.value)

    with serve(answer) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        stopped(0, 4, "4 of 6 requests are done and saved: the same command with a larger")
        stopped(0, 4, "4 of 6 requests")
        stopped(1, 4, "0 of 6 requests")
        assert len(server.seen) == 4, "the nodes and attempts share it"
        assert run(within(nodes, 0, **{unit: 8 * each})).metrics["asked_now"] == 2
        stopped(1, 8, "2 of 6 requests")
        done = run(within(nodes, 1, **{unit: 12 * each})).metrics
    assert (done["traces"], done["asked_now"]) == (6, 4) and len(server.seen) == 12


def test_requests_under_way_are_kept(
    nodes: list[NodeSpec], environment: pytest.MonkeyPatch
) -> None:
    def slow(n: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.3 * n)
        return completion("because")

    environment.setenv("RLT_REFINE_CONCURRENCY", "4")
    with serve(slow) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        with pytest.raises(UserError, match=r"60 tokens .* are spent; 4 of 6 requests"):
            run(within(nodes, 0, tokens=1))
        assert len(server.seen) == 4


def test_a_budget_that_cannot_be_kept_is_refused(
    nodes: list[NodeSpec], environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent, _, body = completion("because")
    silent = body.replace(b'"usage"', b'"used"')
    with serve(lambda n, _: (sent, {}, silent)) as server:
        environment.setenv("RLT_REFINE_BASE_URL", server.url)
        with pytest.raises(UserError, match="does not say how many tokens"):
            run(within(nodes, 0, tokens=1000))
        assert len(server.seen) == 1
        assert run(nodes[0]).metrics["without_usage"] == 6 == len(server.seen)
        environment.delenv("RLT_REFINE_PROMPT_PRICE")
        with pytest.raises(UserError, match="budget_usd needs the prices"):
            run(within(nodes, 1, usd=1))
        changes = ["endpoint_teacher.name=x", "endpoint_teacher.model=m", "resources.budget_usd=1"]
        place = str(tmp_path / "new")
        plan = Plan.of("endpoint-generation", "smoke", changes, store=place)
        with pytest.raises(UserError, match="RLT_REFINE_PROMPT_PRICE and RLT_REFINE_COMPLETION"):
            compute(plan, quiet=True)
    assert len(server.seen) == 6 and not Path(place).exists()


def test_the_budget_of_a_plan_is_that_of_all_traces(tmp_path: Path) -> None:
    changes = ["seeds=[0,1]", "endpoint_teacher.name=x", "endpoint_teacher.model=m"]
    plan = Plan.of("full-pipeline", "smoke", changes, store=str(tmp_path))
    assert {spec.budget for spec in plan.specs()} == {None}
    limited = Plan.of(
        "full-pipeline", "smoke", [*changes, "resources.budget_tokens=9"], store=str(tmp_path)
    )
    assert [spec.key for spec in limited.specs()] == [spec.key for spec in plan.specs()]
    having = [spec for spec in limited.specs() if spec.budget]
    assert {spec.stage for spec in having} == {"trace-generation", "endpoint-generation"}
    assert {spec.budget.nodes for spec in having if spec.budget} == {
        tuple(spec.key for spec in having)
    }


def test_shards_stop_at_the_budget_and_go_on_with_a_larger_one(
    inputs: dict[str, Ref], tmp_path: Path
) -> None:
    sampling = GenerationConfig(n=2, max_tokens=8)
    config = TraceGenerationConfig(sampling=sampling, split="train", format=FORMAT, seed=0)
    store, given = Store(str(tmp_path / "store")), dict(inputs)
    given["teacher"] = given.pop("tokenizer")
    whole = node_spec(store, "trace-generation", config, given, shard_questions=1)

    def stopped(tokens: int, shards: int) -> None:
        message = rf"tokens of resources.budget_tokens={tokens} are spent; {shards} of 3 shards"
        with pytest.raises(UserError, match=message):
            run(within([whole], 0, tokens=tokens))
        parts.append(store.workspace(whole.key).metrics("shards"))

    parts: list[dict[str, Any]] = []
    stopped(1, 1)
    stopped(1, 1)
    taken = sum(part["completion_tokens"] for part in parts[0].values())
    stopped(taken + 1, 2)
    assert parts[0] == parts[1] and parts[0].items() < parts[2].items(), "no shard is redone"
    manifest = run(within([whole], 0, tokens=10**6))
    assert manifest.metrics["traces"] == 6
    made = manifest.metrics["traces"] * manifest.metrics["mean_tokens"]
    another = node_spec(
        store, "trace-generation", config.replaced(seed=1), given, shard_questions=1
    )
    with pytest.raises(UserError, match=f"^{made:.0f} tokens .* 0 of 3 shards"):
        run(within([whole, another], 1, tokens=int(made)))
