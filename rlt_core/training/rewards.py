"""What GRPO optimises: the RLT reward of an explanation, or the correctness of an answer.

Shapes: N completions of a batch; T tokens of an explanation, S of a solution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from rlt_core.config import CorrectnessReward, RewardSpec, StageResources, TeacherGRPOConfig
from rlt_core.errors import UserError
from rlt_core.grading import Grade, GradeItem, Grader
from rlt_core.models import load_model, load_tokenizer, on_device, require_same_vocabulary
from rlt_core.prompts.renderer import Explanation, Renderer
from rlt_core.reward.diagnostics import watch
from rlt_core.reward.formula import RewardParts, reward_parts
from rlt_core.scoring import Contexts, selected_logprobs, token_scores
from rlt_core.training.rollouts import LOGPROBS, Rollout, recorded_logprobs

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
    parts: dict[str, list[float | None]]
    """Columns of `train_steps`: recorded is the mean over the step's completions that have a
    value."""


class NoReward(Exception):
    """A completion, by its place in the batch, has no finite reward."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


class RewardFunction(Protocol):
    """Rewards of a whole batch of completions at once."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """Tokens that end a completion."""

    @property
    def reads_policy(self) -> bool:
        """Whether it makes forward calls of the policy, which is gathered for it then."""

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Raise UserError if some completion of these prompts could have no reward."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        sampled: Sequence[LOGPROBS],
        policy: nn.Module,
    ) -> Rewards:
        """Rewards of `completions[i]`, which the current `policy` wrote to `prompts[i]` with
        log-probs `sampled[i]`. Completions of one question stand together. Raises NoReward."""


class RLTReward:
    """How well a frozen student predicts the solution from the explanation, and how natural the
    explanation is to it (arXiv 2506.08388, eq. 3-5; `rlt_core.reward.formula`).

    The teacher's log-probs are those of the policy as it is now: computed from it, or recorded when
    it sampled (`rlt_core.training.rollouts`).
    """

    reads_policy = True

    def __init__(
        self,
        renderer: Renderer,
        student: Path,
        spec: RewardSpec,
        config: TeacherGRPOConfig,
        *,
        resources: StageResources,
    ) -> None:
        """`student`: its model folder; `config`: of the training. Raises UserError unless teacher
        (whose tokenizer the renderer holds) and student have one vocabulary, and if the log-probs
        of this training's rollouts are not those of the reward."""
        config.check_against(spec)
        names = ("the teacher", "the reward student")
        require_same_vocabulary(renderer.tokenizer, load_tokenizer(student), names)
        self.stop_ids = renderer.stop_ids
        self._renderer, self._spec, self._resources = renderer, spec, resources
        self._recorded = config.teacher_logprobs == "rollout"
        self._student = load_model(student, config.dtype).requires_grad_(False)

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Every explanation must fit into the student's context: it is never cut."""
        limit = self._student.config.get_text_config().max_position_embeddings
        for prompt in prompts:
            context = self._contexts(prompt, []).student
            tokens = len(context.ids) + max_completion_tokens
            if tokens > limit:
                raise UserError(
                    f"question {prompt.question_id}: with an explanation of max_completion_tokens="
                    f"{max_completion_tokens} the reward student's context may have {tokens} "
                    f"tokens, but it has {limit} positions; lower max_completion_tokens by "
                    f"{tokens - limit}, or drop the question with a lower data.max_prompt_tokens"
                )

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[int]],
        sampled: Sequence[LOGPROBS],
        policy: nn.Module,
    ) -> Rewards:
        thinks = [self._renderer.split_completion(ids) for ids in completions]
        contexts = [self._contexts(p, think.ids) for p, think in zip(prompts, thinks, strict=True)]
        if self._recorded:
            rollouts = [
                Rollout(
                    prompts[i].question_id,
                    contexts[i].teacher,
                    len(contexts[i].teacher.ids) - len(prompts[i].ids),
                    ids,
                    sampled[i],
                )
                for i, ids in enumerate(completions)
            ]
            logprobs = self._with_recorded(contexts, rollouts, policy)
        else:
            logprobs = self._computed(contexts, policy)
        scored = []
        for place, (each, think) in enumerate(zip(logprobs, thinks, strict=True)):
            try:
                scored.append(reward_parts(**each, closed=think.closed, spec=self._spec))
            except ValueError as error:
                raise NoReward(place, str(error)) from error
        columns = _columns(scored, thinks) | self._guards(thinks, contexts)
        return Rewards([parts.reward for parts in scored], columns)

    def _contexts(self, prompt: Prompt, think_ids: Sequence[int]) -> Contexts:
        question, solution = prompt.row["question"], prompt.row["solution"]
        return Contexts(
            student=self._renderer.student_context(question, think_ids, solution),
            teacher=self._renderer.teacher_context(question, solution, think_ids),
        )

    def _computed(self, contexts: Sequence[Contexts], policy: nn.Module) -> list[dict[str, Any]]:
        """Arguments of `reward_parts`, each model asked once for the whole batch."""
        scores = token_scores(
            contexts,
            lambda: on_device(self._student, self._resources),
            lambda: nullcontext(policy),
            self._spec,
            self._resources.tokens_per_batch,
            ranks=False,
            words=self._renderer.words,
        )
        return [
            {
                "student_solution_logprobs": each.student_solution,
                "student_think_logprobs": each.student_think,
                "teacher_think_logprobs": each.teacher_think,
                "think_kl": each.think_kl,
            }
            for each in scores
        ]

    def _with_recorded(
        self, contexts: Sequence[Contexts], rollouts: Sequence[Rollout], policy: nn.Module
    ) -> list[dict[str, Any]]:
        """The same with the teacher's log-probs as they were sampled."""

        def score(
            model: nn.Module, ids: Sequence[Sequence[int]], spans: Sequence[Any]
        ) -> list[Any]:
            temperature, tokens = self._spec.temperature, self._resources.tokens_per_batch
            return selected_logprobs(model, ids, spans, temperature, tokens)

        with on_device(self._student, self._resources) as student:
            by_student = score(
                student,
                [each.student.ids for each in contexts],
                [[each.solution, each.student.think] for each in contexts],
            )
        teacher = recorded_logprobs(
            rollouts,
            lambda ids, spans: [found for (found,) in score(policy, ids, [[s] for s in spans])],
        )
        names = (
            "student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs",
        )  # fmt: skip
        return [
            dict(zip(names, (*student, teacher[i]), strict=True))
            for i, student in enumerate(by_student)
        ]

    def _guards(
        self, thinks: Sequence[Explanation], contexts: Sequence[Contexts]
    ) -> dict[str, list[float | None]]:
        """What the guards see in each explanation, by column."""
        seen = []
        for think, each in zip(thinks, contexts, strict=True):
            start, end = each.solution
            seen.append(asdict(watch(think.text, think.ids, each.student.ids[start:end])))
        return {name: [each[name] for each in seen] for name in seen[0]}


def _columns(
    scored: Sequence[RewardParts], thinks: Sequence[Explanation]
) -> dict[str, list[float | None]]:
    columns: dict[str, list[float | None]] = {
        name: [getattr(parts, name) for parts in scored] for name in PARTS
    }
    return columns | {"unclosed": [float(not think.closed) for think in thinks]}


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
        sampled: Sequence[LOGPROBS],
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
