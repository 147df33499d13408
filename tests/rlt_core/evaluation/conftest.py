"""A hub cache with little data sets in the schemas of the hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlt_core.evaluation.benchmarks import BENCHMARKS

COMMIT = "0" * 40
ROWS: dict[str, list[dict[str, Any]]] = {
    "aime24": [
        {
            "id": 60 + i,
            "problem": problem,
            "solution": f"It is {answer}.",
            "answer": answer,
            "url": "https://artofproblemsolving.com",
            "year": "2024",
        }
        for i, (problem, answer) in enumerate([("Six times seven?", "42"), ("1?", "1")])
    ],
    "math_500": [
        {
            "problem": "Half?",
            "solution": "It is not $\\boxed{7}$ but a half.",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        }
    ],
    "gpqa_diamond": [
        {
            "Question": f"Which, {i}?",
            "Correct Answer": "right",
            "Incorrect Answer 1": "w1",
            "Incorrect Answer 2": "w2",
            "Incorrect Answer 3": "w3",
            "Explanation": "Because.",
            "Record ID": f"rec{i}",
            "High-level domain": "Physics",
            "Subdomain": "Astrophysics",
        }
        for i in range(12)
    ],
}
SPLITS = {"aime24": "train", "math_500": "test", "gpqa_diamond": "train"}


def write_hub(folder: Path, rows_of: Mapping[str, Sequence[Mapping[str, Any]]] = ROWS) -> None:
    """Laid out as `snapshot_download` leaves it."""
    for name, rows in rows_of.items():
        repo = folder / f"datasets--{BENCHMARKS[name].repo.replace('/', '--')}"
        snapshot = repo / "snapshots" / COMMIT
        snapshot.mkdir(parents=True, exist_ok=True)
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / "main").write_text(COMMIT)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (snapshot / "rows.jsonl").write_text(text)
        subset = {"gpqa_diamond": "gpqa_diamond"}.get(name, "default")
        (snapshot / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {subset}\n  data_files:\n"
            f"  - split: {SPLITS[name]}\n    path: rows.jsonl\n---\n"
        )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder."""
    write_hub(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path
