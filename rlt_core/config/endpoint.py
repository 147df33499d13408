"""LLMs behind an OpenAI-compatible endpoint: what they are asked for, and how they are reached."""

import os
from collections.abc import Mapping
from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from rlt_core.config.base import Fraction, Frozen, Positive, Probability
from rlt_core.errors import UserError
from rlt_core.names import RelativePath

SYSTEM = (
    "You edit worked reasoning so that a learner can follow it. Keep the line of thought and every "
    "step that the result needs; take out repetitions, detours and remarks about yourself; mend "
    "wrong steps. Write nothing but the edited reasoning."
)
TEMPLATE = (
    "Question:\n{question}\n\nCorrect solution:\n{solution}\n\nReasoning to edit:\n{trace}\n\n"
    "Write the edited reasoning. It must lead from the question to this solution."
)
TEACHER_SYSTEM = (
    "You are a teacher. You are given a question and its correct solution, and write the reasoning "
    "by which a learner who does not know the solution gets from the question to it, step by step. "
    "Write nothing but the reasoning, and do not mention that you were given the solution."
)
TEACHER_TEMPLATE = (
    "Question:\n{question}\n\nCorrect solution:\n{solution}\n\n"
    "Write the reasoning that leads from the question to this solution."
)
PREFIX = "RLT_REFINE_"


class ChatConfig(Frozen):
    """Requests to an LLM; all of it is hashed."""

    REQUIRED: ClassVar[tuple[str, ...]]
    """What the template must contain."""

    name: RelativePath
    """Name of the traces' teacher in the tables."""
    model: str = Field(min_length=1)
    """The LLM's name at the endpoint."""
    system: str
    """The system prompt; empty: none is sent."""
    template: str
    """The user's turn."""
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
    def _has_places(cls, template: str) -> str:
        if missing := [place for place in cls.REQUIRED if place not in template]:
            raise ValueError(f"it must contain {missing[0]}")
        return template


class RefinementConfig(ChatConfig):
    """An LLM rewrites traces."""

    REQUIRED = ("{trace}",)

    system: str = SYSTEM
    """The system prompt; empty: none is sent."""
    template: str = TEMPLATE
    """The user's turn, with `{question}`, `{solution}` and `{trace}` in place of the texts."""


class EndpointTeacherConfig(ChatConfig):
    """An LLM explains the training questions."""

    REQUIRED = ("{question}", "{solution}")

    system: str = TEACHER_SYSTEM
    """The system prompt; empty: none is sent."""
    template: str = TEACHER_TEMPLATE
    """The user's turn, with `{question}` and `{solution}` in place of the texts."""
    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy."""
    top_p: Probability = 1.0
    """Sample among the likeliest tokens that make up this probability; 1 is not sent."""
    n: Positive = 1
    """Explanations per question, each by a request of its own."""
    seed: int | None = 0
    """Seed sent for the first explanation of a question, raised by one for each further one and
    training seed; empty: none, for endpoints that refuse one."""
    n_questions: Positive | None = None
    """Number of questions to explain, chosen by the training seed; empty: all."""


class Prices(Frozen):
    """Prices of an LLM, from the environment, never hashed."""

    prompt_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """RLT_REFINE_PROMPT_PRICE: of a million prompt tokens, in any currency."""
    completion_price: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """RLT_REFINE_COMPLETION_PRICE: of a million completion tokens."""

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Return the price of so many tokens; None unless both prices are given."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        price = prompt_tokens * self.prompt_price + completion_tokens * self.completion_price
        return price / 1e6

    def require(self) -> None:
        """Raise UserError unless both prices are given."""
        if self.cost(0, 0) is None:
            raise UserError(
                f"resources.budget_usd needs the prices of a million tokens: set {PREFIX}"
                f"PROMPT_PRICE and {PREFIX}COMPLETION_PRICE"
            )

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Raise UserError naming the variable and the fix, without showing a value."""
        names = {field: PREFIX + field.upper() for field in cls.model_fields}
        given = {field: environment[name] for field, name in names.items() if environment.get(name)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = names[str(first["loc"][0])]
            if first["type"] == "missing":
                raise UserError(
                    f"{name} is not set: give the address of an OpenAI-compatible endpoint, e.g. "
                    "http://127.0.0.1:8000/v1"
                ) from None
            raise UserError(f"{name}: {first['msg']}") from None


class Endpoint(Prices):
    """Address of the LLM and limits of its use: from the environment, never hashed.

    The key is not here: `RLT_REFINE_KEY` is read where the requests are made.
    """

    base_url: str
    """RLT_REFINE_BASE_URL, e.g. http://127.0.0.1:8000/v1."""
    concurrency: Positive = 8
    """RLT_REFINE_CONCURRENCY: requests under way at once."""
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """RLT_REFINE_REQUESTS_PER_MINUTE, tries after a fault included; empty: no limit."""
    retries: int = Field(default=6, ge=0)
    """RLT_REFINE_RETRIES: further tries after 429, 5xx, a time-out or a broken connection."""
    timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """RLT_REFINE_TIMEOUT_S: for one answer."""

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must begin with http:// or https:// and a host")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"no credentials or query belong in it; the key is {PREFIX}KEY")
        return url
