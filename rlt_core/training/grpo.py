"""Group Relative Policy Optimisation with TRL's GRPOTrainer, strictly on-policy.

Loss (arXiv 2402.03300, eq. 3, as arXiv 2506.08388 uses it): A_i = (r_i - mean) / (std + 1e-4)
inside a group; ratio times A_i less beta times the k3 estimate of KL(policy | reference), mean over
a completion's tokens, then over the completions of a step. Every default of TRL that would change
this is pinned in `_arguments`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOConfig as TRLConfig

from rlt_core.config import GRPOConfig, StageResources
from rlt_core.errors import UserError
from rlt_core.models import load_tokenizer
from rlt_core.processes import join
from rlt_core.progress import Progress
from rlt_core.store import Workspace
from rlt_core.training.data_order import MicroBatches, data_order, micro_batches, total_steps
from rlt_core.training.grpo_trainer import PolicyTrainer
from rlt_core.training.metrics import StepRecorder, alarms, mean_of
from rlt_core.training.policy import adapters, load_policy, trainer_arguments
from rlt_core.training.reward_function import Prompt, RewardFunction


def train_grpo(
    model: Path,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    config: GRPOConfig,
    *,
    seed: int,
    key: str,
    stage: str,
    out: Path,
    work: Workspace,
    resources: StageResources,
    progress: Progress,
) -> dict[str, float]:
    """Train a model folder on its own completions; writes `out/model/`, `out/train_steps.parquet`.

    Completions are drawn from the live policy by the engine that `resources` name; their seeds
    derive from `key` (the node's), step, question and sample. Prompts longer than
    `config.max_prompt_tokens` are dropped and counted (`dropped_too_long`).
    Raises UserError if too few prompts are left, if a completion might outgrow the model's
    positions, or if the reward refuses (`RewardFunction.check`); RuntimeError with the trace's id
    for a reward that is no number; Stopped when asked to stop. Called again with the same workspace
    it goes on from the last checkpoint.
    """
    set_seed(seed)
    policy = load_policy(model, config, resources)
    kept = _fitting(prompts, config, policy, stage)
    reward.check(kept, config.max_completion_tokens)
    steps = total_steps(config, len(kept), config.questions_per_step)
    order = data_order(len(kept), config.questions_per_step, steps, seed)
    micro = micro_batches(
        config.questions_per_step * config.group_size,
        resources.micro_batch_size,
        join(resources).num_processes,
    )
    recorder = StepRecorder(
        stage,
        seed,
        steps,
        config.questions_per_step / len(kept),
        resources.checkpoint_every_steps,
        progress,
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PolicyTrainer(
            start=model,
            draws_ahead=config.rollouts_ahead,
            prompts=kept,
            key=key,
            reward=reward,
            resources=resources,
            model=policy,
            args=_arguments(scratch, config, steps, micro, seed, resources),
            train_dataset=Dataset.from_dict({"prompt": order}),
            processing_class=load_tokenizer(model),
            peft_config=adapters(config.lora),
        )
        trainer.run(work, recorder)
    trainer.finish(model, out, config.dtype)
    return _metrics(recorder.rows, len(kept), len(prompts) - len(kept))


def _arguments(
    scratch: str,
    config: GRPOConfig,
    steps: int,
    micro: MicroBatches,
    seed: int,
    resources: StageResources,
) -> TRLConfig:
    sync = config.reference_sync if config.beta > 0 else None
    syncing: dict[str, Any] = (
        {"ref_model_mixup_alpha": sync.alpha, "ref_model_sync_steps": sync.every_steps}
        if sync
        else {}
    )
    return TRLConfig(
        output_dir=scratch,
        **trainer_arguments(config, steps, micro, seed, resources),
        **syncing,
        sync_ref_model=sync is not None,
        num_generations=config.group_size,
        steps_per_generation=micro.accumulation,
        num_iterations=1,
        shuffle_dataset=False,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        use_vllm=False,  # our engines draw: rollout
        vllm_importance_sampling_correction=False,
        beta=config.beta,
        use_bias_correction_kl=False,
        loss_type="grpo",
        scale_rewards="group",
        multi_objective_aggregation="sum_then_normalize",
        importance_sampling_level="token",
        epsilon=0.2,
        epsilon_high=0.2,
        delta=None,
        off_policy_mask_threshold=None,
        mask_truncated_completions=False,
        top_entropy_quantile=1.0,
        entropy_coef=0.0,
        disable_dropout=True,
        cast_lm_head_to_fp32=False,
        router_aux_loss_coef=0.0,
        log_completions=False,
    )


def _fitting(
    prompts: Sequence[Prompt], config: GRPOConfig, policy: PreTrainedModel, stage: str
) -> list[Prompt]:
    """The prompts short enough to train on. Raises UserError if a step cannot be filled."""
    kept = [prompt for prompt in prompts if len(prompt.ids) <= config.max_prompt_tokens]
    if len(kept) < config.questions_per_step:
        raise UserError(
            f"{stage}: {len(kept)} questions ({len(prompts) - len(kept)} more exceed "
            f"max_prompt_tokens={config.max_prompt_tokens}) do not fill a step of "
            f"questions_per_step={config.questions_per_step}; lower it, or give more questions"
        )
    limit = policy.config.get_text_config().max_position_embeddings
    longest = max(kept, key=lambda prompt: len(prompt.ids))
    needed = len(longest.ids) + config.max_completion_tokens
    if needed > limit:
        raise UserError(
            f"{stage}: question {longest.question_id} has a prompt of {len(longest.ids)} tokens; "
            f"with max_completion_tokens={config.max_completion_tokens} that is {needed}, but the "
            f"model has {limit} positions; lower max_completion_tokens or max_prompt_tokens"
        )
    return kept


def _metrics(steps: Sequence[dict[str, Any]], prompts: int, dropped: int) -> dict[str, float]:
    seconds = sum(step["seconds"] for step in steps)
    metrics = {
        "questions": float(prompts),
        "dropped_too_long": float(dropped),
        "steps": float(len(steps)),
        "reward_first": mean_of(steps[:5], "reward"),
        "reward_last": mean_of(steps[-5:], "reward"),
        "seconds_per_step": seconds / len(steps),
        "tokens_per_s": sum(step["tokens"] for step in steps) / seconds,
    }
    if steps[0]["grader_failed"] is not None:
        metrics["grader_failed"] = mean_of(steps, "grader_failed")
    return metrics | alarms(steps)
