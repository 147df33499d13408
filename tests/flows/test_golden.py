"""Golden outputs of the `smoke` profile, all stages: a refactor leaves them as they are.

Losses are compared to rounding, what depends on sampled tokens more loosely (another processor
may sample another token). After a deliberate change: raise the stage's version, then `make
digests`.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlt_core.stages import STAGES
from rlt_core.store import Store
from tests.chat_server import completion, serve
from tests.flows.conftest import Rlt

FILE = Path(__file__).with_name("golden_smoke.json")
TIMES = {"tokens_per_s", "seconds_per_step"}
SAMPLED = {
    "teacher-grpo", "student-grpo", "trace-generation", "trace-scoring", "trace-refinement",
    "evaluation", "rank-statistics", "student-sft",
}  # fmt: skip
"""Stages whose output depends on sampled tokens, of their own or of an input."""


@pytest.fixture(scope="module")
def store_of_all_stages(
    smoke_store: Path, rlt_process: Rlt, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """The finished `smoke` run, continued with imported traces and scores, a refinement and
    an LLM that teaches."""
    folder = tmp_path_factory.mktemp("golden")
    traces, scores, root = folder / "traces.jsonl", folder / "scores.jsonl", folder / "store"
    rows = [(f"{a}+{b}", str(a + b), f"{a} and {b} make {a + b}.") for a, b in ((1, 2), (3, 5))]
    names = ("question", "solution", "trace")
    traces.write_text(
        "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    )
    scored = [{"question_id": "q", "sample": i, "reward": -float(i)} for i in range(3)]
    scores.write_text("".join(json.dumps(row) + "\n" for row in scored))
    shutil.copytree(smoke_store, root)
    with (
        serve(lambda *_: completion("a refined trace")) as endpoint,
        pytest.MonkeyPatch.context() as m,
    ):
        m.setenv("RLT_REFINE_BASE_URL", endpoint.url)
        m.setenv("RLT_REFINE_KEY", "none")
        done = rlt_process(
            "run", "full-pipeline", "--profile", "smoke", "--store", str(root),
            "--set", f"imports.traces.own={traces}", "--set", f"imports.scores.own={scores}",
            "--set", "trace_refinement.name=refined", "--set", "trace_refinement.model=m",
        )  # fmt: skip
        taught = rlt_process(
            "run", "teach", "--profile", "smoke", "--store", str(root),
            "--set", "endpoint_teacher.name=llm", "--set", "endpoint_teacher.model=m",
        )  # fmt: skip
    for each in (done, taught):
        assert each.returncode == 0, each.stdout + each.stderr
    return Store(str(root))


def measured(store: Store) -> dict[str, dict[str, Any]]:
    """Metrics without times, and rows by table, of every node. Of two reports the larger."""
    found: dict[str, dict[str, Any]] = {}
    for manifest in sorted(store.manifests(), key=lambda one: len(one.inputs)):
        numbers = {name: v for name, v in manifest.metrics.items() if name not in TIMES}
        files = [f for f in manifest.files if f.path != "rollouts.parquet"]  # as `Resources` say
        rows = {f"rows of {f.path}": f.rows for f in files if f.rows is not None}
        found[manifest.label] = numbers | rows
    return found


def test_smoke_computes_what_it_did(store_of_all_stages: Store) -> None:
    now = measured(store_of_all_stages)
    stages = {label.partition("[")[0] for label in now}
    assert stages == set(STAGES)
    if os.environ.get("RENEW_DIGESTS"):
        FILE.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    golden = json.loads(FILE.read_text())
    assert set(now) == set(golden)
    for label, numbers in now.items():
        sampled = label.partition("[")[0] in SAMPLED
        tolerance = {"rel": 0.05, "abs": 0.15} if sampled else {"rel": 1e-4, "abs": 1e-6}
        assert numbers == pytest.approx(golden[label], **tolerance, nan_ok=True), label
