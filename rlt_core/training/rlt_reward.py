"""The reward of GRPO on explanations (arXiv 2506.08388, eq. 3-5).

Shapes: T tokens of an explanation's span, one array per completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rlt_core.config import RewardSpec, StageResources, TeacherGRPOConfig
from rlt_core.errors import UserError
from rlt_core.models import load_model, load_tokenizer, on_device
from rlt_core.prompts.renderer import Context, Renderer, Span
from rlt_core.reward.diagnostics import diagnose
from rlt_core.scoring import ContextBuilder, Contexts, TokenScores, selected_logprobs, token_scores
from rlt_core.scoring.lm_head import FLOATS
from rlt_core.training.reward_function import NoReward, Prompt, RewardFunction, Rewards

PARTS = ("r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max")
Score = Callable[[Sequence[Sequence[int]], Sequence[Span]], list[FLOATS]]
"""Computes the log-probs of one span of each sequence under the current policy."""


class RLTReward(RewardFunction):
    """How well a frozen student predicts the solution from the explanation, and how natural the
    explanation is to it (`rlt_core.reward.formula`).

    The teacher's log-probs are those of the current policy: computed from it
    (`teacher_logprobs=exact`), or recorded by the engine while sampling (`rollout`), which saves a
    forward pass of the policy over all completions. Rounding differs between the two (other
    kernels, other batches); `rollout_gap_*` in `train_steps` measures how much.
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
        """`student`: its model folder. Raises UserError unless teacher (whose tokenizer the
        renderer has) and student have the same vocabulary or text travels between them, and if the
        log-probs that the engine records are not those of the reward."""
        config.check_against(spec)
        of_student = Renderer(renderer.format, load_tokenizer(student))
        self._builder = ContextBuilder(of_student, renderer, spec.alignment)
        self.stop_ids = renderer.stop_ids
        self._renderer, self._spec, self._resources = renderer, spec, resources
        self._recorded = config.teacher_logprobs == "rollout"
        self._student = load_model(student, config.dtype).requires_grad_(False)

    def check(self, prompts: Sequence[Prompt], max_completion_tokens: int) -> None:
        """Every explanation must fit into the student's context: it is never truncated."""
        limit = self._positions()
        for prompt in prompts:
            context = self._contexts(prompt, "", []).student
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
        sampled: Sequence[FLOATS],
        policy: nn.Module,
    ) -> Rewards:
        thinks = [self._renderer.split_completion(ids) for ids in completions]
        contexts = [
            self._contexts(prompt, think.text, think.ids)
            for prompt, think in zip(prompts, thinks, strict=True)
        ]
        sizes = [len(each.student.ids) for each in contexts]
        # The student's own tokens of a text may be more than `check` has counted.
        if not self._builder.one_vocabulary and max(sizes) > self._positions():
            longest = sizes.index(max(sizes))
            raise NoReward(longest, f"the student's context has {max(sizes)} tokens")
        if self._recorded:
            rollouts = [
                Rollout(teacher, ids, old, len(p.ids))
                for p, each, ids, old in zip(prompts, contexts, completions, sampled, strict=True)
                if (teacher := each.teacher)
            ]
            scores = self._with_recorded(contexts, rollouts, policy)
        else:
            scores = token_scores(
                contexts,
                lambda: on_device(self._student, self._resources),
                lambda: nullcontext(policy),
                self._spec,
                self._resources.tokens_per_batch,
                ranks=False,
                words=self._renderer.words,
            )
        scored, diagnostics, details = [], [], []
        for place, (each, think) in enumerate(zip(scores, thinks, strict=True)):
            try:
                scored.append(each.reward(think.closed, self._spec))
            except ValueError as error:
                raise NoReward(place, str(error)) from error
            solution_ids = contexts[place].student.ids[slice(*contexts[place].solution)]
            diagnostics.append(
                asdict(diagnose(think.text, contexts[place].think_ids, solution_ids))
            )
            details.append(
                {
                    "penalty": scored[-1].penalty,
                    "closed": think.closed,
                    "text": think.text,
                    "token_ids": think.ids,
                    **each.columns(),
                }
            )
        columns: dict[str, list[float | None]] = {
            name: [getattr(parts, name) for parts in scored] for name in PARTS
        }
        columns["unclosed"] = [float(not think.closed) for think in thinks]
        columns |= {name: [each[name] for each in diagnostics] for name in diagnostics[0]}
        return Rewards([parts.reward for parts in scored], columns, details)

    def _positions(self) -> int:
        return int(self._student.config.get_text_config().max_position_embeddings)

    def _contexts(self, prompt: Prompt, text: str, ids: Sequence[int]) -> Contexts:
        return self._builder.contexts(prompt.row["question"], prompt.row["solution"], text, ids)

    def _with_recorded(
        self, contexts: Sequence[Contexts], rollouts: Sequence[Rollout], policy: nn.Module
    ) -> list[TokenScores]:
        """Scores with the teacher's log-probs as the engine recorded them."""

        def score(model: nn.Module, ids: Any, spans: Any) -> list[list[FLOATS]]:
            temperature, tokens = self._spec.temperature, self._resources.tokens_per_batch
            return selected_logprobs(model, ids, spans, temperature, tokens)

        ids = [each.student.ids for each in contexts]
        with on_device(self._student, self._resources) as student:
            scored = score(student, ids, [[each.solution, each.student.think] for each in contexts])
        teacher = recorded_logprobs(
            rollouts,
            lambda ids, spans: [found for (found,) in score(policy, ids, [[s] for s in spans])],
        )
        return [
            TokenScores(solution, think, by_teacher, shared=each.shared)
            for each, (solution, think), by_teacher in zip(contexts, scored, teacher, strict=True)
        ]


@dataclass(frozen=True)
class Rollout:
    """A completion whose explanation its own teacher scores."""

    context: Context
    """The teacher's: its prompt, then the explanation."""
    completion: Sequence[int]
    sampled: FLOATS
    """As long as the completion."""
    prompt_tokens: int

    @property
    def scored(self) -> FLOATS | None:
        """The log-probs as sampled, if the completion begins with the tokens to score; else None.
        It does not if the prefilled padding is scored too, or if the explanation's last characters
        shared a token with the closing tag and were re-encoded."""
        start, end = self.context.think
        ids = self.context.ids[start:end]
        recorded = start >= self.prompt_tokens or not ids
        same = recorded and ids == list(self.completion[: len(ids)])
        return self.sampled[: len(ids)] if same else None


def recorded_logprobs(rollouts: Sequence[Rollout], score: Score) -> list[FLOATS]:
    """Return the log-probs of each context's think span, (T,). `score` is called once, for those
    that were not sampled like this."""
    found = [each.scored for each in rollouts]
    asked = [each.context for each, own in zip(rollouts, found, strict=True) if own is None]
    computed = iter(score([each.ids for each in asked], [each.think for each in asked]))
    return [next(computed) if own is None else own for own in found]
