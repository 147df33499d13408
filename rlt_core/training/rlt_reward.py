"""The reward of GRPO on explanations (arXiv 2506.08388, eq. 3-5).

Shapes: N completions of a batch; T tokens of an explanation, S of a solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from rlt_core.config import RewardSpec, StageResources, TeacherGRPOConfig
from rlt_core.errors import UserError
from rlt_core.models import load_model, load_tokenizer, on_device, require_same_vocabulary
from rlt_core.prompts.renderer import Explanation, Renderer
from rlt_core.reward.diagnostics import watch
from rlt_core.reward.formula import RewardParts, reward_parts
from rlt_core.scoring import Contexts, selected_logprobs, token_scores
from rlt_core.training.reward_function import NoReward, Prompt, Rewards
from rlt_core.training.rollouts import LOGPROBS, Rollout, recorded_logprobs

PARTS = ("r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max")


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
