"""A vLLM server has the weights of one training at a time."""

from pathlib import Path

import pytest

from rlt_core.config import StageResources
from rlt_core.store import Store
from tasks.execute import alone_on_server
from tasks.stage import NodeSpec

SERVER = "http://host:8000"


class Waits(Exception):
    """The server is another's."""


def training(store: Store, stage: str, server: str | None, engine: str, label: str) -> NodeSpec:
    resources = StageResources.model_validate({"engine": engine, "vllm_server": server})
    return NodeSpec(
        store=str(store), key="b" * 16, stage=stage, config={}, inputs={}, label=label, seed=1,
        profile="paper-32b", paths={}, resources=resources,
    )  # fmt: skip


def take(store: Store, stage: str, server: str | None, engine: str = "vllm") -> None:
    """Take a server for a node's training; raises Waits where the node has to wait."""

    def waiting(lease: dict[str, object]) -> None:
        raise Waits(lease["name"])

    with alone_on_server(training(store, stage, server, engine, "second"), store, waiting):
        pass


def test_another_training_waits_for_the_server_and_nothing_else_does(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = training(store, "student-grpo", SERVER, "vllm", "first")
    with alone_on_server(first, store, lambda _: None):
        for stage in ("student-grpo", "teacher-grpo"):
            with pytest.raises(Waits, match=SERVER):
                take(store, stage, SERVER)
            take(store, stage, "http://other:8000")
            take(store, stage, None)
            take(store, stage, SERVER, engine="transformers")
        for stage in ("student-sft", "trace-generation", "evaluation"):
            take(store, stage, SERVER)
    take(store, "student-grpo", SERVER)
