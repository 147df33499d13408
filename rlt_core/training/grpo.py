"""Group Relative Policy Optimisation (GRPO) on TRL's GRPOTrainer, strictly on-policy.

A step: `PolicyTrainer.rollout` samples completions from the current policy, `PolicyTrainer.score`
rewards them, TRL computes advantages, the reference's log-probs and the loss, and updates.

Loss (arXiv 2402.03300, eq. 3, as arXiv 2506.08388 uses it): A_i = (r_i - mean) / (std + 1e-4)
within a group; ratio times A_i, minus beta times the k3 estimate of KL(policy || reference), mean
over a completion's tokens, then over the completions of a step. `PINNED` fixes it against TRL's
defaults.

Shapes: Q questions of a step, G completions of each, N = Q * G (this process's share of them where
nothing is gathered), B sequences of a micro-batch, P prompt and C completion positions, T tokens.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object, set_seed
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import pad
from trl import GRPOConfig as TRLConfig
from trl import GRPOTrainer

from rlt_core.config import DType, GRPOConfig, ReferenceSync, Sampling, StageResources
from rlt_core.generation import Completion, sample_seed
from rlt_core.models import load_tokenizer
from rlt_core.processes import join, rank
from rlt_core.rows import write_rows
from rlt_core.store import Workspace
from rlt_core.training import sharding
from rlt_core.training.checkpoint import ResumableTrainer
from rlt_core.training.context import TrainingContext
from rlt_core.training.data_order import data_order, fitting_prompts, micro_batches, total_steps
from rlt_core.training.metrics import StepRecorder, grpo_metrics
from rlt_core.training.policy import adapters, load_policy, trainer_arguments
from rlt_core.training.reward_function import NoReward, Prompt, RewardFunction, Rewards
from rlt_core.training.rollout import open_rollouts, require_context
from rlt_core.training.rollout_rows import WATCHED_SAMPLES, choose, rollout_rows, sample_watched

PINNED: dict[str, Any] = {
    "num_iterations": 1, "shuffle_dataset": False, "top_k": 0, "min_p": None,
    "repetition_penalty": 1.0, "use_vllm": False, "vllm_importance_sampling_correction": False,
    "use_bias_correction_kl": False, "loss_type": "grpo", "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize", "importance_sampling_level": "token",
    "epsilon": 0.2, "epsilon_high": 0.2, "delta": None, "off_policy_mask_threshold": None,
    "mask_truncated_completions": False, "top_entropy_quantile": 1.0, "entropy_coef": 0.0,
    "disable_dropout": True, "cast_lm_head_to_fp32": False, "router_aux_loss_coef": 0.0,
    "log_completions": False,
}  # fmt: skip
"""Arguments of TRL that define the loss; its defaults change from version to version."""


# ---------------------------------------------------------------- arguments
def train_grpo(
    model: Path, prompts: Sequence[Prompt], reward: RewardFunction, config: GRPOConfig, key: str,
    context: TrainingContext,
) -> dict[str, float]:  # fmt: skip
    """Train a model folder on its own completions; write `model/`, `train_steps` and `rollouts`.

    The engine that `resources` name samples from the current policy, with seeds derived from `key`
    (the node's), step, question and sample. Prompts longer than `config.max_prompt_tokens` are
    dropped and counted (`dropped_too_long`).
    Raises UserError if too few prompts are left, if a completion might exceed the model's
    positions, or if the reward rejects the prompts (`RewardFunction.check`); RuntimeError with the
    question's id for a reward that is not finite; Stopped after a stop request.
    """
    seed, resources = context.seed, context.resources
    set_seed(seed)
    policy = load_policy(model, config, resources)
    positions = policy.config.get_text_config().max_position_embeddings
    kept = fitting_prompts(prompts, config, positions, context.stage)
    reward.check(kept, config.max_completion_tokens)
    steps = total_steps(config, len(kept), config.questions_per_step)
    order = data_order(len(kept), config.questions_per_step, steps, seed)
    batch_size, processes = config.questions_per_step * config.group_size, join(resources)
    micro = micro_batches(batch_size, resources.micro_batch_size, processes.num_processes)
    recorder = StepRecorder(context, steps, epochs_per_step=config.questions_per_step / len(kept))
    every = resources.rollouts_every_steps
    recorder.logged, watched = choose(order, len(kept), config, steps, every)
    sync = config.reference_sync or ReferenceSync()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TRLConfig(
            output_dir=scratch,
            **trainer_arguments(config, steps, micro, seed, resources),
            **PINNED,
            num_generations=config.group_size,
            steps_per_generation=micro.accumulation,
            max_completion_length=config.max_completion_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            beta=config.beta,
            sync_ref_model=config.beta > 0 and config.reference_sync is not None,
            ref_model_mixup_alpha=sync.alpha,
            ref_model_sync_steps=sync.every_steps,
        )
        trainer = PolicyTrainer(
            prompts=kept,
            watched=[kept[question] for question in watched],
            key=key,
            reward=reward,
            resources=resources,
            model=policy,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": order}),
            processing_class=load_tokenizer(model),
            peft_config=adapters(config.lora),
        )
        trainer.run(context.work, recorder)
    trainer.finish(model, context.out, config.dtype)
    if rank() == 0:
        write_rows(context.out / "rollouts.parquet", "rollouts", recorder.rollouts)
    return grpo_metrics(recorder.rows, len(kept), len(prompts) - len(kept))


# ---------------------------------------------------------------- trainer
class PolicyTrainer(ResumableTrainer, GRPOTrainer):
    """GRPOTrainer whose rows are indices into `prompts`. The completions of a question follow one
    another in the generation batch, over all processes."""

    args: TRLConfig
    _buffered_inputs: Any
    _scored: tuple[list[Prompt], list[Completion], Rewards]
    _logps_BC: Tensor
    """The policy's log-probs of the last loss: TRL computes them, but does not return them."""

    def __init__(
        self, *, prompts: Sequence[Prompt], watched: Sequence[Prompt], key: str,
        reward: RewardFunction, resources: StageResources, **arguments: Any,
    ) -> None:  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")  # experimental
            super().__init__(
                reward_funcs=cast(Any, self.score), rollout_func=cast(Any, self.rollout),
                resources=resources, **arguments,
            )  # fmt: skip
        if self.ref_model is not None and resources.sharding == "none":
            self.ref_model.float()  # on the device: see `load_model`
        elif self.ref_model is not None:
            sharding.shard(self.ref_model, resources, bool(self.args.bf16))
        self._prompts, self._watched, self._key, self._reward = prompts, watched, key, reward
        self._group_size = cast(int, self.args.num_generations)
        self._micro_batches = cast(int, self.args.steps_per_generation)
        self._sampling = Sampling(
            temperature=self.args.temperature,
            top_p=self.args.top_p,
            max_tokens=cast(int, self.args.max_completion_length),
        )
        self._gaps: list[Tensor] = []

    def run(self, work: Workspace, recorder: StepRecorder) -> None:
        """See `ResumableTrainer.run`. Raises UserError if the engine cannot be opened or has too
        little memory."""
        policy = self.accelerator.unwrap_model(self.model)
        dtype: DType = "bfloat16" if self.args.bf16 else "float32"
        needed = max(len(each.ids) for each in self._prompts) + self._sampling.max_tokens
        with open_rollouts(policy, dtype, self._resources, self.accelerator) as self._engine:
            require_context(self._engine, needed, self._resources)
            super().run(work, recorder)

    # ------------------------------------------------------------ a step
    def rollout(self, rows: list[int], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """TRL's `rollout_func`: sample a completion for each of this process's rows (N).

        Each completion has a seed of its own, so that a resumed run, or one with another number of
        processes, samples the same.
        """
        first = self.accelerator.process_index * len(rows)
        key = f"{self._key}:{self.state.global_step}"
        places = range(first, first + len(rows))
        ids, seeds = [], []
        for _, group in groupby(places, lambda place: place // self._group_size):
            samples = list(group)
            prompt = self._prompts[rows[samples[0] - first]]
            ids.append(prompt.ids)
            seeds.append([sample_seed(key, prompt.question_id, place) for place in samples])
        sampled = self._engine.generate(ids, self._sampling, seeds, self._reward.stop_ids)
        completions = [completion for group in sampled for completion in group]
        return {
            "prompt_ids": [self._prompts[row].ids for row in rows],
            "completion_ids": [each.ids for each in completions],
            "logprobs": [each.logprobs.tolist() for each in completions],
            "rollouts": completions,  # passed on to `score`
        }

    def score(self, prompts: list[int], rollouts: list[Completion], **_: Any) -> list[float]:
        """TRL's reward function: rewards of this process's completions (N)."""
        batch = [self._prompts[row] for row in prompts]
        result = self._rewards(batch, rollouts)
        self._scored = batch, rollouts, result
        self._recorder.record_rewards(rollouts, result, self._group_size, self.accelerator)
        return result.rewards

    def _rewards(self, prompts: Sequence[Prompt], rollouts: Sequence[Completion]) -> Rewards:
        """The rewards of completions under the current policy. Raises NoReward for one that is
        not finite in float32: TRL would ignore a NaN silently."""
        policy = self.accelerator.unwrap_model(self.model)
        gathered = sharding.whole(policy) if self._reward.reads_policy else nullcontext()
        with self.accelerator.autocast(), gathered:
            result = self._reward(prompts, rollouts, policy)
        for prompt, reward in zip(prompts, result.rewards, strict=True):
            if not abs(reward) <= torch.finfo(torch.float32).max:
                raise NoReward(f"question {prompt.question_id}: its reward is {reward}")
        return result

    def _record_rollouts(self, step: int, advantages_N: Tensor) -> None:
        """Keep completions of a logged step, and new ones of the watched questions, which every
        process samples alike and nothing is learned from."""
        recorder, (batch, rollouts, result) = self._recorder, self._scored
        if step not in recorder.logged:
            return
        ids, own = recorder.ids | {"step": step}, {}
        for place in range(len(batch)):
            group, sample = divmod(rank() * len(batch) + place, self._group_size)
            if group in recorder.logged[step]:
                own[place] = {"sample": sample, "advantage": advantages_N[place].item()}
        recorder.rollouts += gather_object(rollout_rows(ids, batch, rollouts, result, own))
        more = (self._key, step, self._sampling, self._reward.stop_ids)
        watched, sampled = sample_watched(self._engine, self._watched, *more)
        shown = {place: {"sample": place % WATCHED_SAMPLES} for place in range(len(watched))}
        try:
            rewards = self._rewards(watched, sampled)
        except NoReward as error:  # training goes on without them
            print(f"step {step} logs no watched question: {error}")
            return
        recorder.rollouts += rollout_rows(ids, watched, sampled, rewards, shown)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Tensor]:
        """Override: TRL shuffles a step's completions before it cuts them into micro-batches. Here
        completions of similar length go together, which saves padding; the gradient is the same."""
        if self._step % self._micro_batches == 0:
            batch = self._generate_and_score_completions(generation_batch)
            self._record_rollouts(self.state.global_step + 1, batch["advantages"])
            order_N = batch["completion_mask"].sum(1).argsort(descending=True, stable=True)
            self._buffered_inputs = [
                {name: rows[chunk_B] for name, rows in batch.items() if rows.dim() > 0}
                for chunk_B in order_N.chunk(self._micro_batches)
            ]
        return self._buffered_inputs[self._step % self._micro_batches]

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        """TRL's loss. The log-probs of the policy that has just sampled are compared with those
        that the engine recorded."""
        loss = super().compute_loss(model, inputs, *args, **options)
        gap_BC = self._logps_BC.double() - inputs["sampling_per_token_logps"]
        self._gaps.append(gap_BC[inputs["completion_mask"].bool()])
        if len(self._gaps) == self._micro_batches:
            self._recorder.record_gap(torch.cat(self._gaps), self.accelerator)
            self._gaps = []
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        batch_size: int | None = None, **options: Any,
    ) -> tuple[Tensor, Tensor | None, None]:  # fmt: skip
        """Override: sequences of similar length go together, and columns that are padding in all of
        them are cut off: less work, the same loss."""
        order_B = attention_mask[:, -logits_to_keep:].sum(1).argsort(descending=True, stable=True)
        logps, entropies = [], []
        for chunk in order_B.split(batch_size or len(order_B)):
            used = attention_mask[chunk].any(0).nonzero()
            start, end = int(used[0]), int(used[-1]) + 1
            cut = attention_mask.size(1) - end
            logps_BC, entropies_BC, _ = super()._get_per_token_logps_and_entropies(
                model,
                input_ids[chunk, start:end],
                attention_mask[chunk, start:end],
                logits_to_keep - cut,
                **options,
            )
            logps.append(pad(logps_BC, (0, cut)))
            if entropies_BC is not None:
                entropies.append(pad(entropies_BC, (0, cut)))
        back_B = order_B.argsort()
        logps_BC = torch.cat(logps)[back_B]
        if torch.is_grad_enabled():
            self._logps_BC = logps_BC.detach()
        return logps_BC, torch.cat(entropies)[back_B] if entropies else None, None

    # ------------------------------------------------------------ checkpoints
    def extra_state(self) -> dict[str, Tensor]:
        """The reference model, if it is synced: TRL does not save it."""
        if not self.args.sync_ref_model:
            return {}
        model = self.accelerator.unwrap_model(self.ref_model)
        return {name: each.detach() for name, each in model.named_parameters()}
