"""A hub cache with little data sets in the schemas of the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlt_core.evaluation.benchmarks import BENCHMARKS
from tests.row_files import write

COMMIT = "0" * 40
ROWS: dict[str, list[dict[str, Any]]] = {
    "aime24": [
        {"id": 60 + i, "problem": problem, "solution": f"It is {answer}.", "answer": answer,
         "url": "https://artofproblemsolving.com", "year": "2024"}
        for i, (problem, answer) in enumerate([("Six times seven?", "42"), ("1?", "1")])
    ],
    "math_500": [
        {"problem": "Half?", "solution": "It is not $\\boxed{7}$ but a half.",
         "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1,
         "unique_id": "test/algebra/1.json"}
    ],
    "gpqa_diamond": [
        {"Question": f"Which, {i}?", "Correct Answer": "right", "Incorrect Answer 1": "w1",
         "Incorrect Answer 2": "w2", "Incorrect Answer 3": "w3", "Explanation": "Because.",
         "Record ID": f"rec{i}", "High-level domain": "Physics", "Subdomain": "Astrophysics"}
        for i in range(12)
    ],
}  # fmt: skip


def write_data_set(
    cache: Path, repo: str, rows: Sequence[Mapping[str, Any]], suffix: str = "jsonl", card: str = ""
) -> None:
    """Lay a data set out as `snapshot_download` leaves it; `card`: YAML at the card's head."""
    folder = cache / f"datasets--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    write(snapshot / f"train.{suffix}", rows)
    (snapshot / "README.md").write_text(f"---\n{card}\n---\n")


def write_hub(cache: Path, rows_of: Mapping[str, Sequence[Mapping[str, Any]]] = ROWS) -> None:
    """Lay benchmarks out, each with the subset and split that it is read from."""
    for name, rows in rows_of.items():
        one = BENCHMARKS[name]
        files = f"data_files:\n  - split: {one.split}\n    path: train.jsonl"
        card = f"configs:\n- config_name: {one.subset}\n  {files}"
        write_data_set(cache, one.repo, rows, card=card)
