"""Correctness of an answer as the reward, for the RL cold-start (arXiv 2506.08388, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rlt_core.config import CorrectnessReward
from rlt_core.errors import UserError
from rlt_core.grading import Grade, GradeItem, Grader
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring.lm_head import FLOATS
from rlt_core.training.reward_function import Prompt, Rewards

MAX_GRADER_FAILURES = 0.5
"""Share of a batch's grades above which the grader, not the answers, is at fault."""


class AnswerReward:
    """Correctness of a student's answer, for the RL cold-start (paper, section 2.1).

    An answer on which the grader hangs or dies is rewarded as wrong, as evaluation scores it, and
    counted in `grader_failed`. Should that happen to most of a batch, the grader itself is broken:
    RuntimeError.
    """

    reads_policy = False

    def __init__(self, renderer: Renderer, spec: CorrectnessReward, grader: Grader) -> None:
        self.stop_ids = renderer.stop_ids
        self._renderer, self._spec, self._grader = renderer, spec, grader

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
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        sampled: Sequence[FLOATS],
        policy: nn.Module,
    ) -> Rewards:
        answers = [self._renderer.split_answer(self._renderer.decode(ids)) for ids in completions]
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
