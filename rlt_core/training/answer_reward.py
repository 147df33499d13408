"""Correctness of an answer as the reward, for the RL cold-start (arXiv 2506.08388, section 2.1)."""

from collections.abc import Sequence

from torch import nn

from rlt_core.config import CorrectnessReward
from rlt_core.generation import Completion
from rlt_core.grading import GradeItem, Grader
from rlt_core.prompts.renderer import Renderer
from rlt_core.training.reward_function import Prompt, RewardFunction, Rewards

MAX_GRADER_FAILURES = 0.5
"""Share of a batch's grades above which the grader is tried on the right answers."""


class AnswerReward(RewardFunction):
    """Correctness of a student's answer, for the RL cold-start (paper, section 2.1).

    An answer on which the grader hangs or dies is rewarded as wrong, as evaluation scores it, and
    counted in `grader_failed`. Should that happen to most of a batch, and the right answers fail
    too, the grader itself is broken: RuntimeError.
    """

    def __init__(self, renderer: Renderer, spec: CorrectnessReward, grader: Grader) -> None:
        self.stop_ids = renderer.stop_ids
        self._renderer, self._spec, self._grader = renderer, spec, grader

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], policy: nn.Module
    ) -> Rewards:
        outcomes = ["unformatted"] * len(completions)
        texts = [self._renderer.decode(each.ids) for each in completions]
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
        failed = [prompts[i].row for i in items if outcomes[i] == "grader_failed"]
        if len(failed) > MAX_GRADER_FAILURES * len(items) and self._grader.self_check(failed):
            raise RuntimeError(
                f"the grader failed on {len(failed)} of {len(items)} answers, and on right ones"
            )
        rewards = {"correct": self._spec.correct, "unformatted": self._spec.unformatted}
        return Rewards(
            [rewards.get(outcome, self._spec.wrong) for outcome in outcomes],
            [
                {
                    "unclosed": outcome == "unformatted",
                    "closed": outcome != "unformatted",
                    "correct": outcome == "correct",
                    "grader_failed": outcome == "grader_failed",
                    "text": text,
                    "token_ids": each.ids,
                }
                for outcome, text, each in zip(outcomes, texts, completions, strict=True)
            ],
        )
