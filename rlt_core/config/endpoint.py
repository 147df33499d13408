"""Refinement of traces by an LLM behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from rlt_core.config.base import Fraction, Frozen, Positive
from rlt_core.errors import UserError

SYSTEM = (
    "You edit worked reasoning so that a learner can follow it. Keep the line of thought and every "
    "step that the result needs; take out repetitions, detours and remarks about yourself; mend "
    "wrong steps. Write nothing but the edited reasoning."
)
TEMPLATE = (
    "Question:\n{question}\n\nCorrect solution:\n{solution}\n\nReasoning to edit:\n{trace}\n\n"
    "Write the edited reasoning. It must lead from the question to this solution."
)
PREFIX = "RLT_REFINE_"


class RefinementConfig(Frozen):
    """Request to the LLM; all of it is hashed."""

    name: str = Field(min_length=1)
    """Name of the refined traces' teacher in the tables."""
    model: str = Field(min_length=1)
    """The LLM's name at the endpoint."""
    system: str = SYSTEM
    """The system prompt; empty: none is sent."""
    template: str = TEMPLATE
    """The user's turn, with `{question}`, `{solution}` and `{trace}` in place of the texts."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    max_tokens: Positive = 16384
    """Maximum number of tokens of an answer; an answer that reaches it is dropped."""
    seed: int | None = 0
    """Seed that is sent with each request; empty: none, for endpoints that refuse one."""
    max_dropped: Fraction = 0.05
    """Fraction of the traces that may have no usable answer; with more of them the stage fails."""

    @field_validator("template")
    @classmethod
    def _has_trace(cls, template: str) -> str:
        if "{trace}" not in template:
            raise ValueError("it must contain {trace}")
        return template


class Endpoint(Frozen):
    """Address of the LLM and limits of its use: from the environment, never hashed.

    The key is not here: `RLT_REFINE_KEY` is read where the requests are made.
    """

    base_url: str
    """RLT_REFINE_BASE_URL, e.g. http://127.0.0.1:8000/v1."""
    concurrency: Positive = 8
    """RLT_REFINE_CONCURRENCY: requests under way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """RLT_REFINE_REQUESTS_PER_MINUTE, tries after a fault included; empty: no limit."""
    retries: int = Field(default=6, ge=0)
    """RLT_REFINE_RETRIES: further tries after 429, 5xx, a time-out or a broken connection."""
    timeout_s: float = Field(default=300.0, gt=0)
    """RLT_REFINE_TIMEOUT_S: for one answer."""
    prompt_price: float | None = Field(default=None, ge=0)
    """RLT_REFINE_PROMPT_PRICE: of a million prompt tokens, in any currency."""
    completion_price: float | None = Field(default=None, ge=0)
    """RLT_REFINE_COMPLETION_PRICE: of a million completion tokens."""

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must begin with http:// or https:// and a host")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"no credentials or query belong in it; the key is {PREFIX}KEY")
        return url

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Endpoint:
        """Raise UserError naming the variable and the fix, without showing a value."""
        names = {field: PREFIX + field.upper() for field in cls.model_fields}
        given = {field: environment[name] for field, name in names.items() if environment.get(name)}
        if "base_url" not in given:
            raise UserError(
                f"{names['base_url']} is not set: give the address of an OpenAI-compatible "
                "endpoint, e.g. http://127.0.0.1:8000/v1"
            )
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{names[str(first['loc'][0])]}: {first['msg']}") from None
