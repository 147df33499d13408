"""Distillation of a student."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from rlt_core.config import Frozen, SFTConfig, TraceOrder
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost, Inputs, Traces, TrainingWork


class StudentSFTStageConfig(Frozen):
    """Distillation on the data set's traces, on generated or imported ones, or on none."""

    sft: SFTConfig
    traces: Literal["dataset", "traces", "none"]
    """`none`: an empty thought, then the solution."""
    order: TraceOrder = "reward"
    """Order by which a question's traces are ranked."""
    rank: int | None
    """Train on the trace of this rank of each question (1 is best); all traces when empty."""
    fits: bool = False
    """Train on the best trace of each question whose row has at most `sft.max_tokens`."""
    token_matched: bool = False
    """Leave out questions until the set of this rank has as many explanation tokens as that of
    the rank with the fewest."""
    n_questions: int | None
    format: PromptFormat
    seed: int

    @model_validator(mode="after")
    def _one_choice(self) -> StudentSFTStageConfig:
        if self.fits and self.rank is not None:
            raise ValueError("`fits` and `rank` exclude each other")
        if self.token_matched and self.rank is None:
            raise ValueError("`token_matched` needs a `rank`")
        return self


def _cost(config: StudentSFTStageConfig, inputs: Inputs) -> Cost:
    questions = inputs.questions
    if config.traces == "none":
        traces = Traces(questions.train, questions.train, 0.0)
    elif config.traces == "dataset":
        traces = Traces(questions.with_trace, questions.with_trace, questions.trace)
    else:
        traces = inputs.traces
    chosen = min(traces.questions, config.n_questions or traces.questions)
    one = config.rank is not None or config.fits
    each = 1 if one else max(1, traces.count // max(1, traces.questions))
    return Cost(TrainingWork(config.sft, chosen * each, questions.teacher_prompt + traces.tokens))


STAGE = Stage(
    "student-sft",
    version=2,
    kind="model",
    config=StudentSFTStageConfig,
    tables=("train_steps",),
    model=True,
    pool="gpu",
    shared="steps",
    sections=("student_sft", "student_sft_subset", "countdown"),
    essentials=("epochs", "steps", "learning_rate", "batch_size", "max_tokens", "n_questions"),
    inputs={
        "model": "The model that the student starts from",
        "questions": "The questions",
        "traces": "The traces to learn from",
        "scores": "Scores that rank the traces",
    },
    default_variant="rlt",
    cost=_cost,
)
