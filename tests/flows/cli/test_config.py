"""`rlt config` shows what a run would be computed with."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from rlt_core.overrides import load_config


def shown(*arguments: str) -> dict[str, dict[str, object]]:
    done = CliRunner().invoke(app, ["config", "--json", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {row["field"]: row for row in json.loads(done.stdout)}


def test_values_are_those_of_the_profile_and_changes_are_marked() -> None:
    rows = shown("teacher_grpo", "--set", "teacher_grpo.learning_rate=0.5")
    changed, kept = rows["teacher_grpo.learning_rate"], rows["teacher_grpo.beta"]
    assert (changed["value"], changed["origin"]) == (0.5, "changed")
    assert (kept["value"], kept["origin"]) == (load_config("tiny").teacher_grpo.beta, "tiny")
    assert kept["type"] == "float ≥ 0"


@pytest.mark.parametrize("section", ["", "student_sft"])
def test_a_difference_has_both_values(section: str) -> None:
    rows = shown(*([section] if section else []), "--diff", "tiny", "paper-7b")
    row = rows["student_sft.epochs"]
    assert (row["value"], row["paper-7b"]) == (None, 3)
    assert all(one["value"] != one["paper-7b"] for one in rows.values())
