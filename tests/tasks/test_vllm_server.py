"""A vLLM server has the weights of one training at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlt_core.config import StageResources
from rlt_core.store import Store
from tasks.execute import alone_on_server
from tasks.stage import NodeSpec

SERVER = "http://host:8000"


class Waits(Exception):
    """The server is another's."""


def take(store: Store, stage: str, server: str | None, engine: str = "vllm") -> None:
    """Have a server for a node's training; raises Waits where that has to wait."""

    def waiting(lease: dict[str, object]) -> None:
        raise Waits(lease["name"])

    resources = StageResources.model_validate({"engine": engine, "vllm_server": server})
    spec = NodeSpec(
        store=str(store), key="b" * 16, stage=stage, config={}, inputs={}, label="second",
        seed=1, profile="paper-32b", paths={}, resources=resources,
    )  # fmt: skip
    with alone_on_server(spec, store, waiting):
        pass


def test_another_training_waits_for_the_server_and_nothing_else_does(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    resources = StageResources(engine="vllm", vllm_server=SERVER)
    first = NodeSpec(
        store=str(tmp_path), key="a" * 16, stage="student-grpo", config={}, inputs={},
        label="first", seed=0, profile="paper-32b", paths={}, resources=resources,
    )  # fmt: skip
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
