"""Correctness of an answer as the reward, for the RL cold-start (arXiv 2506.08388, section 2.1)."""

from collections.abc import Sequence

from torch import nn

from rlt_core.config import CorrectnessReward
from rlt_core.errors import UserError
from rlt_core.grading import GradeItem, Grader
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring.lm_head import FLOATS
from rlt_core.training.reward_function import Prompt, RewardFunction, Rewards

MAX_GRADER_FAILURES = 0.5
"""Share of a batch's grades above which the grader, not the answers, is at fault."""


class AnswerReward(RewardFunction):
    """Correctness of a student's answer, for the RL cold-start (paper, section 2.1).

    An answer on which the grader hangs or dies is rewarded as wrong, as evaluation scores it, and
    counted in `grader_failed`. Should that happen to most of a batch, the grader itself is broken:
    RuntimeError.
    """

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
        outcomes = ["unformatted"] * len(completions)
        texts = [self._renderer.decode(ids) for ids in completions]
        items: dict[int, GradeItem] = {}
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            answer, row = self._renderer.split_answer(text), prompt.row
            if answer.formatted:
                items[i] = GradeItem(answer.solution, row["answer"], row["grader"], row["metadata"])
        grades = self._grader.grade_many(list(items.values()))
        for i, grade in zip(items, grades, strict=True):
            outcomes[i] = grade.outcome
            if grade.outcome == "ungradable":
                raise RuntimeError(f"question {prompts[i].question_id} cannot be graded")
        failed = outcomes.count("grader_failed")
        if failed > MAX_GRADER_FAILURES * max(1, len(items)):
            raise RuntimeError(f"the grader failed on {failed} of {len(items)} answers")
        rewards = {"correct": self._spec.correct, "unformatted": self._spec.unformatted}
        columns = {
            "unclosed": "unformatted",
            "correct": "correct",
            "grader_failed": "grader_failed",
        }
        return Rewards(
            [rewards.get(outcome, self._spec.wrong) for outcome in outcomes],
            {
                name: [float(each == counted) for each in outcomes]
                for name, counted in columns.items()
            },
            [
                {
                    "correct": outcome == "correct",
                    "closed": outcome != "unformatted",
                    "text": text,
                    "token_ids": ids,
                }
                for outcome, text, ids in zip(outcomes, texts, completions, strict=True)
            ],
        )
