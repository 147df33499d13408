"""The reward of GRPO on explanations (arXiv 2506.08388, eq. 3-5).

Shapes: T tokens of an explanation's span, one array per completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from rlt_core.config import RewardSpec, StageResources, TeacherGRPOConfig
from rlt_core.errors import UserError
from rlt_core.generation import Completion
from rlt_core.models import compute_dtype, load_model, load_tokenizer, on_device
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.diagnostics import diagnose
from rlt_core.scoring import ContextBuilder, Contexts, TokenScores, selected_logprobs, token_scores
from rlt_core.scoring.lm_head import FLOATS
from rlt_core.training.reward_function import NoReward, Prompt, RewardFunction, Rewards


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
        self._student = load_model(
            student, compute_dtype(config.dtype, resources.device)
        ).requires_grad_(False)

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
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], policy: nn.Module
    ) -> Rewards:
        thinks = [self._renderer.split_completion(each.ids) for each in completions]
        contexts = [
            self._contexts(prompt, think.text, think.ids)
            for prompt, think in zip(prompts, thinks, strict=True)
        ]
        sizes = [len(each.student.ids) for each in contexts]
        # The student's own tokens of a text may be more than `check` has counted.
        if not self._builder.one_vocabulary and max(sizes) > self._positions():
            question = prompts[sizes.index(max(sizes))].question_id
            raise NoReward(f"question {question}: its context has {max(sizes)} tokens")
        scores = token_scores(
            contexts,
            lambda: on_device(self._student, self._resources),
            None if self._recorded else lambda: nullcontext(policy),
            self._spec,
            self._resources.tokens_per_batch,
            ranks=False,
            words=self._renderer.words,
        )
        if self._recorded:
            recorded = list(map(_as_sampled, contexts, prompts, completions))
            scores = self._with_teacher(scores, contexts, recorded, policy)
        rows = []
        for prompt, each, think, context in zip(prompts, scores, thinks, contexts, strict=True):
            try:
                parts = each.reward(think.closed, self._spec)
            except ValueError as error:
                raise NoReward(f"question {prompt.question_id}: {error}") from error
            solution_ids = context.student.ids[slice(*context.solution)]
            rows.append(
                {
                    **asdict(parts),
                    **asdict(diagnose(think.text, context.think_ids, solution_ids)),
                    "unclosed": not think.closed,
                    "closed": think.closed,
                    "text": think.text,
                    "token_ids": think.ids,
                    **each.columns(),
                }
            )
        return Rewards([row.pop("reward") for row in rows], rows)

    def _positions(self) -> int:
        return int(self._student.config.get_text_config().max_position_embeddings)

    def _contexts(self, prompt: Prompt, text: str, ids: Sequence[int]) -> Contexts:
        return self._builder.contexts(prompt.row["question"], prompt.row["solution"], text, ids)

    def _with_teacher(
        self,
        scores: Sequence[TokenScores],
        contexts: Sequence[Contexts],
        recorded: Sequence[FLOATS | None],
        policy: nn.Module,
    ) -> list[TokenScores]:
        """Add the teacher's log-probs: recorded ones, or where there are none the policy's."""
        asked = [
            each.teacher
            for each, own in zip(contexts, recorded, strict=True)
            if own is None and each.teacher
        ]
        found = selected_logprobs(
            policy, [each.ids for each in asked], [[each.think] for each in asked],
            self._spec.temperature, self._resources.tokens_per_batch,
        )  # fmt: skip
        computed = (logprobs for (logprobs,) in found)
        return [
            replace(each, teacher_think=next(computed) if own is None else own)
            for each, own in zip(scores, recorded, strict=True)
        ]


def _as_sampled(contexts: Contexts, prompt: Prompt, completion: Completion) -> FLOATS | None:
    """Return the log-probs of an explanation as the engine recorded them, if the completion begins
    with the tokens to score; else None. It does not if the prefilled padding is scored too, or if
    the explanation's last characters shared a token with the closing tag and were re-encoded."""
    assert contexts.teacher is not None
    start, end = contexts.teacher.think
    ids = contexts.teacher.ids[start:end]
    same = start >= len(prompt.ids) or not ids
    return completion.logprobs[: len(ids)] if same and ids == completion.ids[: len(ids)] else None
