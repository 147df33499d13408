"""The forms of the UI: every field explained, nothing filled in changes nothing, edits arrive."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.hydration import hydrate
from prefect.utilities.schema_tools.validation import validate
from pydantic import BaseModel, ValidationError

from flows import deployments
from flows.forms import assignments, essentials, essentials_form, inputs_form, overrides_form
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
def test_an_empty_form_changes_nothing_and_explains_every_field(stage: str) -> None:
    assert assignments(stage, overrides_form(stage)()) == []
    for form in (overrides_form(stage), essentials_form(stage), inputs_form(stage)):
        assert [name for name, text in fields_of(form) if not text] == []


def untouched(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What the browser sends of a form that nobody touched (compared in tests/server)."""
    sent: dict[str, Any] = {}
    for name, field in schema.get("properties", {}).items():
        reference = field.get("$ref") or next(iter(field.get("allOf", [])), {}).get("$ref")
        if reference:
            inner = untouched(definitions[reference.rpartition("/")[2]], definitions)
            sent |= {name: inner} if inner else {}
        elif field.get("type") == "boolean":
            sent[name] = False
        elif field.get("type") == "object" and not field.get("properties"):
            sent[name] = {"__prefect_kind": "json"}
    return sent


def untouched_form(form: type[BaseModel]) -> dict[str, Any]:
    schema = form.model_json_schema()
    return untouched(schema, schema.get("$defs", {}))


@EVERY_STAGE
def test_an_untouched_form_changes_no_profile(stage: str) -> None:
    forms = [overrides_form(stage), essentials_form(stage)]
    arrives: Any = [hydrate(untouched_form(form)) for form in forms]  # as Prefect's server does
    sets = assignments(
        stage, *(form.model_validate(sent) for form, sent in zip(forms, arrives, strict=True))
    )
    for profile in PROFILES:
        assert load_config(profile, sets) == load_config(profile)


def parameters(stage: str) -> dict[str, Any]:
    """The parameters of a deployment, as the browser shows them."""
    made = getattr(deployments, stage.replace("-", "_"))
    return dict(parameter_schema(made).model_dump_for_openapi())


@EVERY_STAGE
def test_essentials_are_first_resources_last_and_nodes_nowhere(stage: str) -> None:
    schema = parameters(stage)
    shown = sorted(schema["properties"], key=lambda name: schema["properties"][name]["position"])
    first = essentials(stage)
    assert shown[:2] == ["profile", "essentials" if first else "variant"]
    assert shown[-1] == "overrides" and "nodes" not in shown
    assert list(schema["definitions"][f"{camel(stage)}Overrides"]["properties"])[-1] == "resources"
    assert len(first) <= 6


def camel(stage: str) -> str:
    return stage.title().replace("-", "")


def test_fields_show_what_each_profile_has() -> None:
    text = essentials_form("teacher-grpo").model_fields["group_size"].description
    shown = {
        profile: int(value)
        for profiles, value in re.findall(r"([a-z0-9, -]+): (\d+)", text or "")
        for profile in profiles.strip().split(", ")
    }
    assert shown == {name: load_config(name).teacher_grpo.group_size for name in PROFILES}
    resources = overrides_form("teacher-grpo").model_json_schema()["$defs"]["ResourcesForm"]
    micro = load_config("paper-7b").resources.of("teacher-grpo").micro_batch_size
    assert f": {micro}" in resources["properties"]["micro_batch_size"]["description"]


@EVERY_STAGE
def test_essentials_are_shown_once_and_taken_in_both_places(stage: str) -> None:
    tiny = load_config("tiny").model_dump(mode="json")
    for name, path in essentials(stage).items():
        section = path.partition(".")[0]
        value = (tiny[section] or {}).get(name)
        if value in (None, {}) or section == "base_model":
            continue
        overrides = {section: {name: value}}
        schema = overrides_form(stage).model_json_schema()
        assert validate(overrides, schema, preprocess=False) == []
        assert validate({section: {f"{name}s": value}}, schema, preprocess=False) != []
        title = "".join(part.title() for part in section.split("_"))
        assert name not in schema["$defs"][f"{title}Form"]["properties"]
        nested = assignments(stage, overrides_form(stage).model_validate(overrides))
        first = essentials_form(stage).model_validate({name: value})
        assert nested == assignments(stage, overrides_form(stage)(), first) != []


def test_names_that_the_user_chooses_are_one_field() -> None:
    fields = overrides_form("trace-import").model_json_schema()["$defs"]["ImportsForm"]
    shown = {**fields["properties"], "traces": fields["patternProperties"]["^traces$"]}
    assert {name: field["type"] for name, field in shown.items()} == dict.fromkeys(
        ("models", "traces", "scores", "benchmarks"), "object"
    )


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


@pytest.mark.parametrize(
    ("profile", "filled", "expected"),
    [("tiny", "epochs", (2, None)), ("paper-7b", "steps", (None, 2))],
)
def test_filling_epochs_empties_steps_and_the_reverse(
    profile: str, filled: str, expected: tuple[int | None, int | None]
) -> None:
    form = overrides_form("student-sft").model_validate({"student_sft": {filled: 2}})
    student = load_config(profile, assignments("student-sft", form)).student_sft
    assert (student.epochs, student.steps) == expected


@pytest.mark.parametrize(
    ("field", "message"), [("learning_rate", "greater_than"), ("learnig_rate", "learnig_rate")]
)
def test_limits_and_names_are_the_configs(field: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        overrides_form("teacher-grpo").model_validate({"teacher_grpo": {field: -1}})


def test_resources_are_those_of_the_stage() -> None:
    form = overrides_form("teacher-sft").model_validate({"resources": {"threads": 2}})
    resources = load_config("tiny", assignments("teacher-sft", form)).resources
    assert (resources.of("teacher-sft").threads, resources.of("teacher-grpo").threads) == (2, 1)
