"""What GRPO optimises: the RLT reward of an explanation, or the correctness of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from rlt_core.config import CorrectnessReward, RewardSpec, StageResources
from rlt_core.errors import UserError
from rlt_core.grading import Grade, GradeItem, Grader
from rlt_core.models import load_model, load_tokenizer, require_same_vocabulary
from rlt_core.prompts import Context, Prompter
from rlt_core.reward import RewardParts, reward_parts
from rlt_core.scoring import selected_logprobs

MAX_GRADER_FAILURES = 0.5
"""Share of a batch's grades above which the grader, not the answers, is at fault."""
PARTS = ("r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max")


@dataclass(frozen=True)
class Prompt:
    """A question as GRPO sees it."""

    question_id: str
    ids: list[int]
    """The whole prompt: chat template, and what is prefilled of the assistant's turn."""
    row: Mapping[str, Any]
    """Its row of `questions`."""


@dataclass(frozen=True)
class Rewards:
    """One value a completion, in the order of the completions."""

    rewards: list[float]
    parts: dict[str, list[float]]
    """Columns of `train_steps`, whose mean over the step's completions is recorded."""


class RewardFunction(Protocol):
    """Rewards of a whole batch of completions at once."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """Tokens that end a completion."""

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Raise UserError if some completion of these prompts could have no reward."""

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], policy: nn.Module
    ) -> Rewards:
        """Rewards of `completions[i]`, which the current `policy` wrote to `prompts[i]`."""


class RLTReward:
    """How well a frozen student predicts the solution from the explanation, and how natural the
    explanation is to it (arXiv 2506.08388, eq. 3-5; `rlt_core.reward`).

    The teacher's log-probs are those of the policy as it is now.
    """

    def __init__(
        self,
        prompter: Prompter,
        student: Path,
        spec: RewardSpec,
        *,
        dtype: str,
        resources: StageResources,
    ) -> None:
        """`student`: its model folder. Raises UserError unless teacher (whose tokenizer the
        prompter holds) and student have one vocabulary."""
        names = ("the teacher", "the reward student")
        require_same_vocabulary(prompter.tokenizer, load_tokenizer(student), names)
        self.stop_ids = prompter.stop_ids
        self._prompter, self._spec = prompter, spec
        self._student = load_model(student, dtype, resources.device).requires_grad_(False)
        self._tokens_per_batch = resources.tokens_per_batch

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Every explanation must fit into the student's context: it is never cut."""
        limit = self._student.config.get_text_config().max_position_embeddings
        for prompt in prompts:
            tokens = len(self._student_context(prompt, []).ids) + max_completion_tokens
            if tokens > limit:
                raise UserError(
                    f"question {prompt.question_id}: with an explanation of max_completion_tokens="
                    f"{max_completion_tokens} the reward student's context may have {tokens} "
                    f"tokens, but it has {limit} positions; lower max_completion_tokens by "
                    f"{tokens - limit}, or drop the question with a lower data.max_prompt_tokens"
                )

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], policy: nn.Module
    ) -> Rewards:
        thinks = [self._prompter.split_completion(ids) for ids in completions]
        students, teachers = [], []
        for prompt, think in zip(prompts, thinks, strict=True):
            question, solution = prompt.row["question"], prompt.row["solution"]
            students.append(self._student_context(prompt, think.ids))
            teachers.append(self._prompter.teacher_context(question, solution, think.ids))
        by_student = self._logprobs(
            self._student, students, [[_solution(context), context.think] for context in students]
        )
        by_teacher = self._logprobs(policy, teachers, [[context.think] for context in teachers])
        scored = []
        for i, think in enumerate(thinks):
            (solution, student_think), (teacher_think,) = by_student[i], by_teacher[i]
            try:
                scored.append(
                    reward_parts(solution, student_think, teacher_think, think.closed, self._spec)
                )
            except ValueError as error:
                raise RuntimeError(f"question {prompts[i].question_id}: {error}") from error
        return Rewards([parts.reward for parts in scored], _columns(scored, thinks))

    def _student_context(self, prompt: Prompt, think_ids: Sequence[int]) -> Context:
        row = prompt.row
        return self._prompter.student_context(row["question"], think_ids, row["solution"])

    def _logprobs(
        self, model: nn.Module, contexts: Sequence[Context], spans: Sequence[Any]
    ) -> list[Any]:
        ids = [context.ids for context in contexts]
        return selected_logprobs(model, ids, spans, self._spec.temperature, self._tokens_per_batch)


def _solution(context: Context) -> tuple[int, int]:
    assert context.solution is not None  # a student's context has one
    return context.solution


def _columns(scored: Sequence[RewardParts], thinks: Sequence[Any]) -> dict[str, list[float]]:
    columns = {name: [getattr(parts, name) for parts in scored] for name in PARTS}
    return columns | {"unclosed": [float(not think.closed) for think in thinks]}


class AnswerReward:
    """Correctness of a student's answer, for the RL cold-start (paper, section 2.1).

    An answer on which the grader hangs or dies is no correct one: it is rewarded as wrong and
    counted in `grader_failed`. Should that happen to most of a batch, the grader itself is broken:
    RuntimeError.
    """

    def __init__(self, prompter: Prompter, spec: CorrectnessReward, grader: Grader) -> None:
        self.stop_ids = prompter.stop_ids
        self._prompter, self._spec, self._grader = prompter, spec, grader

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Every question needs an answer to compare with (countdown: its numbers)."""
        ungradable = [
            prompt.question_id
            for prompt in prompts
            if prompt.row["grader"] == "none"
            or (prompt.row["answer"] is None and prompt.row["grader"] != "countdown")
        ]
        if ungradable:
            raise UserError(
                f"RL on correctness: {len(ungradable)} of {len(prompts)} questions have no answer "
                f"to grade with, for instance question {ungradable[0]}; map data.fields.answer, "
                "or set student_grpo=null"
            )

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], policy: nn.Module
    ) -> Rewards:
        answers = [self._prompter.split_answer(self._prompter.decode(ids)) for ids in completions]
        formatted = [i for i, answer in enumerate(answers) if answer.formatted]
        items = [
            GradeItem(
                answers[i].solution,
                prompts[i].row["answer"],
                prompts[i].row["grader"],
                prompts[i].row["metadata"],
            )
            for i in formatted
        ]
        grades: dict[int, Grade] = dict(zip(formatted, self._grader.grade_many(items), strict=True))
        failed = sum(grade.outcome == "grader_failed" for grade in grades.values())
        if failed > MAX_GRADER_FAILURES * max(1, len(grades)):
            raise RuntimeError(f"the grader failed on {failed} of {len(grades)} answers")
        count = range(len(completions))
        return Rewards(
            [self._reward(prompts[i], grades.get(i)) for i in count],
            {
                "unclosed": [float(i not in grades) for i in count],
                "correct": [_share(grades.get(i), "correct") for i in count],
                "grader_failed": [_share(grades.get(i), "grader_failed") for i in count],
            },
        )

    def _reward(self, prompt: Prompt, grade: Grade | None) -> float:
        if grade is None:
            return self._spec.unformatted
        if grade.outcome == "ungradable":
            raise RuntimeError(f"question {prompt.question_id} cannot be graded")
        return self._spec.correct if grade.outcome == "correct" else self._spec.wrong


def _share(grade: Grade | None, outcome: str) -> float:
    return float(grade is not None and grade.outcome == outcome)
