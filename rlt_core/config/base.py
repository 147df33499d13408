"""Base class and field types of the config classes."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from rlt_core.extensions import is_path, pinned


class Frozen(BaseModel):
    """Base of every config class: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _true_is_no_number(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse true and false for a number, which Pydantic reads as 1 and 0."""
        config = validate(given)
        for name, value in given.items() if isinstance(given, dict) else ():
            kept: Any = getattr(config, name, None)
            pairs = (
                zip(value, kept, strict=False)
                if isinstance(value, list | tuple) and isinstance(kept, tuple)
                else [(value, kept)]
            )
            if any(isinstance(one, bool) and type(read) in (int, float) for one, read in pairs):
                raise ValueError(f"{name}: write a number (given: {json.dumps(value)})")
        return config

    def replaced(self, **fields: Any) -> Self:
        """Return a copy with other values in these fields, which are not validated."""
        return self.model_copy(update=fields)


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Range of the seeds of NumPy's generators."""
Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
"""Commit of a repository on the hub."""
DType = Literal["float32", "bfloat16"]


def _own_or(*names: str) -> AfterValidator:
    """Accept these names, or an object in a module of the user's own, which is pinned."""

    def check(value: str) -> str:
        if value in names:
            return value
        if not is_path(value):
            raise ValueError(f"write {', '.join((*names, 'module:name'))}")
        return pinned(value)

    return AfterValidator(check)


OwnReward = Annotated[str, _own_or()]
Grader = Annotated[str, _own_or("math", "arithmetic", "multiple_choice")]
Engine = Annotated[str, _own_or("transformers", "vllm")]
