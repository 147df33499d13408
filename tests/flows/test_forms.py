"""The forms of the UI: every field explained, nothing filled in changes nothing, edits arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from flows.forms import assignments, inputs_form, overrides_form
from rlt_core.config import Config
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config
from rlt_core.profiles import PROFILES
from rlt_core.stages import STAGES

EVERY_STAGE = pytest.mark.parametrize("stage", sorted(STAGES))


def fields_of(form: type[BaseModel], path: str = "") -> Iterator[tuple[str, str | None]]:
    """Every field of a form and of the forms in it, with its help text."""
    for name, info in form.model_fields.items():
        yield f"{path}{name}", info.description
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_of(inner, f"{path}{name}.")


@EVERY_STAGE
def test_every_field_has_a_help_text(stage: str) -> None:
    for form in (overrides_form(stage), inputs_form(stage)):
        assert [name for name, text in fields_of(form) if not text] == []


@EVERY_STAGE
def test_an_empty_form_changes_nothing(stage: str) -> None:
    assert assignments(stage, overrides_form(stage)()) == []


@EVERY_STAGE
@pytest.mark.parametrize("profile", ["tiny", "paper-7b"])
def test_a_form_filled_with_a_profile_is_that_profile(stage: str, profile: str) -> None:
    config = load_config(profile)
    filled: dict[str, Any] = {}
    for section in STAGES[stage].sections:
        value = config.model_dump(mode="json")[section]
        if section == "base_model" and value.pop("kind") == "hub":
            value = {"source": f"hub:{value['repo']}@{value['revision']}"}
        if value is not None:
            filled[section] = value
    form = overrides_form(stage).model_validate(filled)
    assert load_config(profile, assignments(stage, form)) == config


def test_filling_epochs_empties_steps_and_the_reverse() -> None:
    form = overrides_form("student-sft").model_validate({"student_sft": {"epochs": 2}})
    config = load_config("tiny", assignments("student-sft", form))
    assert (config.student_sft.epochs, config.student_sft.steps) == (2, None)
    form = overrides_form("student-sft").model_validate({"student_sft": {"steps": 5}})
    config = load_config("paper-7b", assignments("student-sft", form))
    assert (config.student_sft.epochs, config.student_sft.steps) == (None, 5)


def test_limits_and_names_are_the_configs() -> None:
    form = overrides_form("teacher-grpo")
    with pytest.raises(ValidationError, match="greater_than"):
        form.model_validate({"teacher_grpo": {"learning_rate": -1}})
    with pytest.raises(ValidationError, match="learnig_rate"):
        form.model_validate({"teacher_grpo": {"learnig_rate": 1}})


def test_resources_are_those_of_the_stage_and_not_hashed() -> None:
    form = overrides_form("teacher-sft").model_validate({"resources": {"threads": 2}})
    config = load_config("tiny", assignments("teacher-sft", form))
    assert config.resources.of("teacher-sft").threads == 2
    assert config.resources.of("teacher-grpo").threads == 1


def graph(config: Config) -> dict[str, set[str]]:
    """Stage -> names of inputs that its nodes have."""
    found: dict[str, set[str]] = {}
    for node in upstream(targets("full-pipeline", config)):
        found.setdefault(node.stage.name, set()).update(node.inputs)
    return found


def test_every_input_of_the_graphs_is_on_its_form(tmp_path: Path) -> None:
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"question": "1+1?", "solution": "2", "trace": "two"}\n')
    imports = [f"imports.traces.theirs={traces}", f"imports.scores.theirs={traces}"]
    for config in (load_config("tiny", imports), PROFILES["smoke"]()):
        for stage, names in graph(config).items():
            inputs = STAGES[stage].inputs
            assert inputs is None or names <= inputs.keys(), stage
