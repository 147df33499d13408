"""The typed forms of the Prefect UI: every field of a profile that a stage reads, all optional.

A form starts empty and only what is filled in differs from the profile: a partial copy of the
config's own classes, so that types, limits and help texts are declared once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from rlt_core.config import Config, ScratchModel, StageResources
from rlt_core.profiles import PROFILES

ProfileName = Literal[tuple(PROFILES)]  # type: ignore[valid-type]

SECTIONS: dict[str, tuple[str, ...]] = {
    "dataset-prep": ("data", "rl_data"),
    "base-model": ("base_model",),
    "teacher-sft": ("teacher_sft",),
    "teacher-grpo": ("teacher_grpo", "reward"),
    "trace-generation": ("trace_generation",),
    "trace-import": ("imports",),
    "trace-scoring": ("trace_scoring", "reward"),
    "score-import": ("imports",),
    "student-sft": ("student_sft",),
    "student-grpo": ("student_grpo",),
    "evaluation": ("evaluation",),
    "rank-ablation": ("rank_ablation",),
    "report": (),
}
"""Stage -> the sections of the config that it reads."""

INPUTS: dict[str, dict[str, str]] = {
    "dataset-prep": {"tokenizer": "the imported base model whose tokenizer measures lengths"},
    "base-model": {"questions": "the questions that a model from scratch grows up with"},
    "teacher-sft": {"model": "the base model", "questions": "questions with traces"},
    "teacher-grpo": {
        "model": "the teacher to start from",
        "student": "the frozen student whose log-probs are the reward",
        "questions": "the training questions",
    },
    "trace-generation": {"teacher": "who writes", "questions": "what about"},
    "trace-import": {"tokenizer": "the base model whose tokenizer reads the traces"},
    "trace-scoring": {
        "traces": "what is scored",
        "questions": "the questions of the traces",
        "teacher": "whose context sees the solution",
        "student": "whose log-probs are the reward",
    },
    "score-import": {},
    "student-sft": {
        "model": "what the student starts from",
        "questions": "the questions",
        "traces": "the traces to learn from",
        "scores": "ranks of the traces",
    },
    "student-grpo": {"model": "the student to start from", "questions": "the training questions"},
    "evaluation": {"model": "who is tested", "questions": "the held-out questions"},
}
"""Stage -> the artifacts that it reads; rank-ablation and report read as many as there are."""

DEFAULT_VARIANT = {
    "trace-generation": "rlt",
    "trace-scoring": "rlt",
    "student-sft": "rlt",
    "student-grpo": "rlt",
    "evaluation": "rlt",
}
"""Of a stage with several nodes, the one that is meant when none is named."""


class Form(BaseModel):
    """Base of every form: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The config class of a field, also of an optional one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _optional(info: FieldInfo) -> tuple[Any, Any]:
    """The field of a form for a field of the config."""
    inner = _model_in(info.annotation)
    if inner is not None:
        form: Any = partial(inner)
        null_is_empty = Annotated[form, BeforeValidator(lambda value: value or {})]
        return null_is_empty, Field(default_factory=form, description=info.description)
    annotation: Any = info.annotation
    for constraint in info.metadata:
        annotation = Annotated[annotation, constraint]
    return annotation | None, Field(default=None, description=info.description)


@cache
def partial(model: type[BaseModel]) -> type[Form]:
    """A config class with every field optional and empty."""
    fields = {name: _optional(info) for name, info in model.model_fields.items() if name != "kind"}
    made: type[Form] = create_model(f"{model.__name__}Form", __base__=Form, **fields)  # type: ignore[call-overload]
    return made


class BaseModelForm(partial(ScratchModel)):  # type: ignore[misc]
    """A model from scratch, or `source`."""

    source: str | None = Field(
        default=None,
        description="In place of a model from scratch: hub:org/name[@commit], folder:path, "
        "package:name.",
    )


def _section(name: str) -> tuple[Any, Any]:
    info = Config.model_fields[name]
    if name == "base_model":
        return BaseModelForm, Field(default_factory=BaseModelForm, description=info.description)
    return _optional(info)


@cache
def overrides_form(stage: str) -> type[Form]:
    """What of a profile can be changed for one stage."""
    fields = {name: _section(name) for name in SECTIONS[stage]}
    resources = partial(StageResources)
    fields["resources"] = (
        resources,
        Field(default_factory=resources, description="Where it runs; does not change the key."),
    )
    name = f"{_camel(stage)}Overrides"
    made: type[Form] = create_model(name, __base__=Form, **fields)  # type: ignore[call-overload]
    return made


@cache
def inputs_form(stage: str) -> type[BaseModel]:
    """The artifacts that one stage reads, each by key, unique beginning of a key, or name."""
    fields = {
        name: (str | None, Field(default=None, description=f"{what}; empty: the latest run's"))
        for name, what in INPUTS.get(stage, {}).items()
    }
    extra: Literal["forbid", "allow"] = "forbid" if stage in INPUTS else "allow"
    made: type[BaseModel] = create_model(  # type: ignore[call-overload]
        f"{_camel(stage)}Inputs", __config__=ConfigDict(extra=extra), **fields
    )
    return made


def _camel(stage: str) -> str:
    return "".join(part.title() for part in stage.split("-"))


def assignments(stage: str, overrides: BaseModel) -> list[str]:
    """What was filled in, as `--set` assignments."""
    filled = overrides.model_dump(mode="json", exclude_none=True)
    resources = filled.pop("resources", {})
    found = list(_replaced_lengths(overrides))
    base = filled.get("base_model", {})
    if "source" in base:
        found.append(f"base_model={json.dumps(base.pop('source'))}")
    found += [f"{path}={json.dumps(value)}" for path, value in _leaves(filled)]
    found += [
        f"resources.stages.{stage}.{name}={json.dumps(value)}" for name, value in resources.items()
    ]
    return found


def _replaced_lengths(overrides: BaseModel) -> Iterator[str]:
    """A training has a length in epochs or in steps: filling one empties the other."""
    for section, values in overrides:
        if not isinstance(values, BaseModel) or not {"epochs", "steps"} <= set(dict(values)):
            continue
        for given, other in (("epochs", "steps"), ("steps", "epochs")):
            if getattr(values, given) is not None:
                yield f"{section}.{other}=null"


def _leaves(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
