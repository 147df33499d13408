"""Rewards that others computed: question_id, sample and reward in a file of the user."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from rlt_core.data.files import read_records
from rlt_core.errors import UserError
from rlt_core.reward import rank_rewards
from rlt_core.rows import write_rows
from rlt_core.schemas import SCORES

Row = dict[str, Any]


def import_scores(path: Path, name: str, out: Path) -> dict[str, float]:
    """Write a score file as the table `scores`, ranked within each question.

    `name` stands for teacher and student; what the file does not have is empty. Raises UserError
    naming file, row, field and the mend.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    seen: dict[tuple[str, int], int] = {}
    for number, record in read_records(path):
        row = _row(record, name, f"{path}, row {number}")
        first = seen.setdefault((row["question_id"], row["sample"]), number)
        if first != number:
            raise UserError(f"{path}: rows {first} and {number} score the same completion")
        groups[row["question_id"]].append(row)
    if not groups:
        raise UserError(f"{path}: there is no row in it")
    for group in groups.values():
        for row, rank in zip(group, rank_rewards([row["reward"] for row in group]), strict=True):
            row["rank"] = rank
    rows = [row for group in groups.values() for row in group]
    write_rows(out / "scores.parquet", "scores", rows)
    return {"scored": len(rows), "mean_reward": sum(row["reward"] for row in rows) / len(rows)}


def _row(record: Row, name: str, place: str) -> Row:
    missing = [field for field in ("question_id", "reward") if field not in record]
    if missing:
        raise UserError(f"{place}: no field {missing[0]!r}; it has {', '.join(record)}")
    try:
        reward, sample = float(record["reward"]), int(record.get("sample", 0))
    except (TypeError, ValueError):
        raise UserError(f"{place}: reward must be a number and sample an integer") from None
    if not math.isfinite(reward):
        raise UserError(f"{place}: reward is {reward}; leave out what could not be scored")
    question_id = str(record["question_id"])
    return {
        **dict.fromkeys(SCORES.names),
        "trace_id": f"{question_id}-{sample}",
        "question_id": question_id,
        "seed": 0,
        "teacher": name,
        "student": name,
        "sample": sample,
        "status": "scored",
        "reward": reward,
    }
