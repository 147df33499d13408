"""Every hub set of the paper, offline, from a hub cache with rows in the set's own columns.

Columns: https://huggingface.co/datasets/ + the repository's name.
"""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from rlt_core.config import DataConfig, FieldMapping
from rlt_core.data.sources import read_source
from rlt_core.errors import UserError
from rlt_core.evaluation.benchmarks import benchmark_task
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.hf_hub import UNPINNED
from rlt_core.overrides import load_config
from rlt_core.profiles import paper_7b
from tests.hub_cache import COMMIT, ROWS, write_data_set, write_hub

REPLY = (
    "<|begin_of_thought|>\n\nTwo and two.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is \\boxed{4}.\n\n<|end_of_solution|>"
)
TURNS = [{"from": "user", "value": "What is 2+2?"}, {"from": "assistant", "value": REPLY}]
CONVERSATION = {"system": "Your role as an assistant …", "conversations": TURNS}
S1K = {
    "solution": "4", "question": "What is 2+2?", "cot_type": "math", "source_type": "AI-MO",
    "metadata": "{}", "cot": None, "thinking_trajectories": ["Two and two.", "Four."],
    "attempt": "Answer: 4",
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize(
    ("repo", "suffix", "card", "licence"),
    [
        ("bespokelabs/Bespoke-Stratos-17k", "parquet", "license: apache-2.0", "apache-2.0"),
        ("NovaSky-AI/Sky-T1_data_17k", "json", "license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("NovaSky-AI/Sky-T1_data_17k", "json", "language: en", None),
    ],
)
def test_conversations(cache: Path, repo: str, suffix: str, card: str, licence: str | None) -> None:
    write_data_set(cache, repo, [CONVERSATION], suffix, card)
    data = paper_7b().data.model_copy(update={"source": f"hub:{repo}"})
    (row,) = read_source(data).rows
    assert (row.question, row.trace) == ("What is 2+2?", "Two and two.")
    assert (row.solution, row.licence) == ("It is \\boxed{4}.", licence)


def test_s1k_has_its_trace_in_steps(cache: Path) -> None:
    write_data_set(cache, "simplescaling/s1K", [S1K], "parquet", "license: apache-2.0")
    fields = FieldMapping(trace="thinking_trajectories", licence="source_type")
    (row,) = read_source(DataConfig(source="hub:simplescaling/s1K", fields=fields)).rows
    assert (row.question, row.solution) == ("What is 2+2?", "4")
    assert row.trace == "Two and two.\nFour."
    assert row.licence == "AI-MO", "a row's own field goes before the card"


def test_a_trace_of_no_text_is_named(cache: Path) -> None:
    write_data_set(
        cache, "simplescaling/s1K", [S1K, {**S1K, "thinking_trajectories": []}], "parquet"
    )
    data = DataConfig(
        source="hub:simplescaling/s1K", fields=FieldMapping(trace="thinking_trajectories")
    )
    with pytest.raises(UserError, match=r"s1K, row 2: the trace .* is empty"):
        read_source(data)


def test_limr_is_read_by_the_papers_mapping(cache: Path) -> None:
    write_data_set(cache, "GAIR/LIMR", [{"prompt": "What is 2+2?", "answer": "4"}], "json")
    data = paper_7b().rl_data
    assert data is not None
    (row,) = read_source(data).rows
    assert (row.question, row.solution, row.answer) == ("What is 2+2?", "4", "4")
    with pytest.raises(UserError, match=r"data\.hub_split='dev'"):
        read_source(data.model_copy(update={"hub_split": "dev"}))


def test_a_data_set_of_several_configs_is_read_by_the_named_one(cache: Path) -> None:
    files = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: train.jsonl\n"
        for name, split in (("main", "train"), ("socratic", "other"))
    )
    row = {"question": "What is 2+2?", "answer": "So 4.\n#### 4"}
    write_data_set(cache, "openai/gsm8k", [row], card=f"configs:\n{files}")
    data = DataConfig(
        source="hub:openai/gsm8k", split_at="####", fields=FieldMapping(solution="answer")
    )
    for split in ("main/train", "socratic/other"):
        (row,) = read_source(data.replaced(hub_split=split)).rows
        assert (row.question, row.trace, row.solution) == ("What is 2+2?", "So 4.", "4")
    for split, message in (
        ("train", r"\['main', 'socratic'\]; write data\.hub_split=CONFIG/SPLIT"),
        ("none/train", "none"), ("main/test", "test"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as error:
            read_source(data.replaced(hub_split=split))
        assert "\n" not in str(error.value)


def test_benchmarks_are_compared_as_evaluation_reads_them(cache: Path) -> None:
    write_hub(cache)
    for name, rows in ROWS.items():
        question, *others = benchmark_task(name, revision=COMMIT).questions
        assert len(others) == len(rows) - 1
        assert (rows[0].get("problem") or rows[0]["Question"]) in question["question"]
    assert all(choice in question["question"] for choice in ("right", "w1", "w2", "w3"))


def test_an_evaluation_set_that_was_not_fetched_names_the_fix(cache: Path) -> None:
    with pytest.raises(UserError, match=r"math_500.*rlt fetch"):
        benchmark_task("math_500", revision=UNPINNED)


def test_the_evaluation_sets_commits_are_part_of_the_key(cache: Path) -> None:
    def prep() -> Any:
        config = load_config("smoke", ['evaluation.tasks=["test","math_500"]'])
        nodes = upstream(targets("full-pipeline", config))
        return next(node for node in nodes if node.stage.name == "dataset-prep")

    before = prep()
    assert before.config.evaluated == {"math_500": UNPINNED}
    write_hub(cache)
    assert prep().config.evaluated == {"math_500": COMMIT}
    assert prep().key != before.key
