"""What a node computes and makes, as its stage declares it: `rlt_core.estimate` has the models and
the resources, and finds memory, disk and hours."""

from dataclasses import dataclass
from typing import Protocol

from rlt_core.config import (
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    GRPOConfig,
    ScoringConfig,
    SFTConfig,
)
from rlt_core.config.endpoint import ChatConfig

TEMPLATE = 60
"""Tokens of system prompt, roles and tags around a question and its answer."""
CHARACTERS = 4
"""Characters of a token of English text."""


@dataclass(frozen=True)
class Questions:
    """A data set."""

    train: int
    validation: int
    test: int
    question: float
    """Tokens; so are the next two."""
    solution: float
    trace: float
    with_trace: int
    longest: float
    """Tokens of the longest question and solution together."""

    @property
    def student_prompt(self) -> float:
        return TEMPLATE + self.question

    @property
    def longest_prompt(self) -> float:
        return TEMPLATE + self.longest

    @property
    def teacher_prompt(self) -> float:
        return TEMPLATE + self.question + self.solution

    @property
    def tokens(self) -> float:
        """All of its texts."""
        rows = self.train + self.validation + self.test
        return rows * (self.question + self.solution) + self.with_trace * self.trace


@dataclass(frozen=True)
class Traces:
    """A set of traces."""

    count: int
    questions: int
    tokens: float
    """Mean of one trace."""


class Inputs(Protocol):
    """Sizes of what a node reads, and of itself where the store has it: counted, else assumed."""

    @property
    def questions(self) -> Questions:
        """The input `questions`."""

    @property
    def traces(self) -> Traces:
        """The input `traces`."""

    def data_set(self, name: str) -> Questions | None:
        """The data set of another input; None if the node has no such input."""

    def prepared(self, data: DataConfig) -> Questions:
        """This node's data set, made of `data`."""

    def written(self, expected: Traces | None = None) -> Traces:
        """This node's traces; `expected` where the store lacks them; None: those of its file."""

    def completion(self, limit: int) -> float:
        """Tokens of a completion with at most `limit`."""


@dataclass(frozen=True)
class TrainingWork:
    """A training of the node's model."""

    recipe: SFTConfig | GRPOConfig
    rows: int
    """Rows to train on; questions of GRPO."""
    tokens: float
    """Of a row; of a prompt of GRPO."""


@dataclass(frozen=True)
class SamplingWork:
    """Completions of a model."""

    config: GenerationConfig | EvaluationConfig
    asked: tuple[tuple[int, float, float], ...]
    """Completions, tokens of their prompts, tokens of themselves."""

    @property
    def tokens(self) -> float:
        return sum(count * (prompt + completion) for count, prompt, completion in self.asked)


@dataclass(frozen=True)
class RequestWork:
    """Answers of an LLM behind an endpoint."""

    count: int
    prompt: float
    """Tokens of one request; so are the next two of its answer, and of one at most."""
    completion: float
    limit: int

    @property
    def tokens(self) -> float:
        return self.count * (self.prompt + self.completion)


def requests(config: ChatConfig, count: int, texts: float, inputs: Inputs) -> RequestWork:
    """Return the work of so many requests, with `texts` tokens each in the template's places."""
    around = (len(config.system) + len(config.template)) / CHARACTERS
    limit = config.max_tokens
    return RequestWork(count, around + texts, inputs.completion(limit), limit)


@dataclass(frozen=True)
class Cost:
    """What a node computes, if that takes a model, and makes."""

    work: TrainingWork | SamplingWork | RequestWork | ScoringConfig | None = None
    """With a ScoringConfig, traces are read by teacher and student."""
    makes: Questions | Traces | None = None
    number_bytes: int = 0
    """Bytes of a weight of the model that it makes without a training."""
