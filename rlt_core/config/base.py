"""What every config class is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of every config class: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy's generators take."""
Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
"""Of a repository on the hub."""
DType = Literal["float32", "bfloat16"]
