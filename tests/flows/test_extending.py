"""The examples of docs/extending.md, read out of the page and run from a folder of their own."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from rlt_core import extensions
from rlt_core.config import DataConfig
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import own_task
from rlt_core.experiments import EXPERIMENTS, targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.rows import read_rows
from rlt_core.stages import STAGES
from rlt_core.store import Manifest, Store
from tests.flows.conftest import Served

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
[COMMAND] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def write_examples(folder: Path) -> None:
    """The files of the page, and the entry points as pip records them."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    groups = tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"]
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *(f"{name} = {path}" for name, path in points.items())]
    installed = folder / "mine-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the examples, importable here."""
    assert STAGES and EXPERIMENTS  # read before the entry points of the examples are there
    write_examples(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]
    extensions.load.cache_clear()


def keys(*changes: str) -> dict[str, str]:
    config = load_config("smoke", changes)
    return {node.name: node.key for node in upstream(targets("full-pipeline", config))}


@pytest.fixture(scope="module")
def run(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store after the page's command."""
    folder = tmp_path_factory.mktemp("mine")
    write_examples(folder)
    environment = served.environment()
    paths = [str(folder), environment.get("PYTHONPATH", "")]
    own = {"RLT_STORE": str(folder / "store"), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    words = shlex.split(COMMAND.replace("\\\n", " "))
    assert words[0] == "rlt"
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", *words[1:]],
        cwd=folder, env=environment | own, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Store(own["RLT_STORE"])


def test_examples_are_short() -> None:
    assert len(FILES) == 10
    assert all(text.count("\n") <= 25 for text in FILES.values())


def test_one_run_uses_every_example(run: Store) -> None:
    made: dict[str, Manifest] = {one.label: one for one in run.manifests()}

    def rows(label: str, table: str) -> list[dict[str, Any]]:
        return read_rows(run.intact(made[label]), table)

    questions = rows("dataset-prep", "questions")
    assert {row["source"].split("@")[0] for row in questions} == {"my_data:questions"}
    assert {row["grader"].split("@")[0] for row in questions} == {"my_grader:within_one_percent"}
    assert made["teacher-grpo"].config["format"]["name"] == "mine"
    assert made["teacher-grpo"].config["reward"]["function"].startswith("my_reward:brief@")
    assert made["trace-generation[rlt]"].config["engine"].startswith("my_engine:BestOfTwo@")
    assert "engine" not in made["evaluation[short]"].config
    all_traces = rows("trace-generation[rlt]", "traces")
    short = rows("shortest-traces[rlt]", "traces")
    lengths = sorted(len(row["token_ids"]) for row in all_traces)
    assert [len(row["token_ids"]) for row in short] == lengths[: len(all_traces) // 2]
    assert made["student-sft[short]"].inputs["traces"] == made["shortest-traces[rlt]"].ref
    answered = rows("evaluation[short]", "eval_samples")
    assert {row["answer"] for row in answered if row["task"] == "products"} == {"63", "125"}
    assert "ungradable" not in {row["outcome"] for row in answered}


def test_an_edit_changes_the_keys_that_depend_on_it_and_no_others(mine: Path) -> None:
    change = "reward.function=my_reward:brief"
    plain, before = keys(), keys(change)
    (mine / "my_reward.py").write_text(FILES["my_reward.py"].replace("0.01", "0.02"))
    after = keys(change)
    assert plain["teacher-grpo@0"] != before["teacher-grpo@0"] != after["teacher-grpo@0"]
    assert plain["teacher-sft@0"] == before["teacher-sft@0"] == after["teacher-sft@0"]


def test_another_source_than_the_planned_one_is_refused(mine: Path) -> None:
    path = extensions.pinned("my_grader:within_one_percent")
    (mine / "my_grader.py").write_text("")
    extensions.load.cache_clear()
    with pytest.raises(UserError, match="the source of my_grader is not the one"):
        extensions.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reward.function=nowhere:f", r"reward\.function: no module 'nowhere'.*PYTHONPATH"),
        ("data.source=my_data:answers", r"data\.source: my_data:answers: .* has no 'answers'"),
        ("data.grader=maths", r"data\.grader: write math, .*module:name"),
        ("resources.engine=my engine", r"resources\.engine: write transformers, vllm, module:name"),
        ("imports.benchmarks.test=my_benchmark.jsonl", r"imports\.benchmarks\.test: .*rename"),
        ("imports.benchmarks.b=nowhere.jsonl", r"nowhere\.jsonl.*no such file"),
    ],
)
def test_what_is_not_there_is_refused_by_its_field(mine: Path, change: str, message: str) -> None:
    tasks = 'evaluation.tasks=["test","b"]' if ".b=" in change else 'evaluation.tasks=["test"]'
    with pytest.raises(UserError, match=message):
        keys(change, tasks)


def test_a_task_of_lighteval_is_a_data_source(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": "One and one?", "answer": "1 + 1 = 2\n#### 2"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    (question,) = own_task("gsm8k", DataConfig(source="my_gsm8k:gsm8k")).questions
    assert question["question"] == "Question: One and one?\nAnswer:"
    assert (question["answer"], question["grader"]) == ("1 + 1 = 2\n#### 2", "math")
