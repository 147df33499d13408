"""Rewards that others computed: question_id, sample and reward in a file of the user."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from rlt_core.data.rawrow import require_text
from rlt_core.data.row_files import BadRow, Record, read_all, value_of
from rlt_core.errors import UserError
from rlt_core.reward.formula import rank_rewards
from rlt_core.rows import write_rows
from rlt_core.sql.schemas import SCORES

Row = dict[str, Any]


def import_scores(path: Path, name: str, out: Path) -> dict[str, float]:
    """Write a score file as the table `scores`, ranked within each question.

    `name` stands for teacher and student; what the file does not have is empty. Raises UserError
    naming file, row, field and fix.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    seen: dict[tuple[str, int], int] = {}
    for number, row in read_all(path, partial(_row, name=name)):
        first = seen.setdefault((row["question_id"], row["sample"]), number)
        if first != number:
            raise UserError(f"{path}: rows {first} and {number} score the same completion")
        groups[row["question_id"]].append(row)
    for group in groups.values():
        for row, rank in zip(group, rank_rewards([row["reward"] for row in group]), strict=True):
            row["rank"] = rank
    rows = [row for group in groups.values() for row in group]
    write_rows(out / "scores.parquet", "scores", rows)
    return {"scored": len(rows), "mean_reward": sum(row["reward"] for row in rows) / len(rows)}


def _row(number: int, record: Record, name: str) -> tuple[int, Row]:
    missing = [field for field in ("question_id", "reward") if field not in record]
    if missing:
        has = ", ".join(map(str, record))
        raise BadRow("missing", f"no field {missing[0]!r}; it has {has}")
    question_id, reward = value_of(record, "question_id"), record["reward"]
    sample = value_of(record, "sample") if "sample" in record else 0
    if question_id is None:
        raise BadRow("empty", "question_id is empty; fill it in or remove the row")
    try:
        reward, whole, sample = float(reward), int(sample), float(sample)
    except (TypeError, ValueError):
        raise BadRow("unreadable", "reward must be a number and sample an integer") from None
    if not math.isfinite(reward):
        raise BadRow("empty", f"reward is {reward}; leave out what could not be scored")
    if whole != sample:
        raise BadRow("unreadable", f"sample must be an integer, found {sample}")
    question_id = require_text(str(question_id), "question_id")
    return number, {
        **dict.fromkeys(SCORES.names),
        "trace_id": f"{question_id}-{whole}",
        "question_id": question_id,
        "seed": 0,
        "teacher": name,
        "student": name,
        "sample": whole,
        "status": "scored",
        "reward": reward,
    }
