"""TRL's GRPOTrainer on prompts of token ids, with our rollouts and rewards.

Shapes: Q questions of a step, G completions of each, N = Q * G; B rows of a micro-batch, P prompt
and C completion positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad
from trl import GRPOConfig, GRPOTrainer

from rlt_core.config import DType, Sampling, StageResources
from rlt_core.errors import UserError
from rlt_core.generation import Completion, Engine, sample_seed
from rlt_core.models import saved_dtype
from rlt_core.store import Workspace
from rlt_core.training import ahead, sharding
from rlt_core.training.ahead import Ahead, Requests
from rlt_core.training.checkpoint import ResumableTrainer
from rlt_core.training.metrics import StepRecorder
from rlt_core.training.reward_function import NoReward, Prompt, RewardFunction, Rewards
from rlt_core.training.rollout import open_ahead, open_rollouts

REFERENCE = "reference.safetensors"


class PolicyTrainer(ResumableTrainer, GRPOTrainer):
    """One generation, one scoring and one update a step; `start`: the folder of the model.

    Rows of the data set are indices into `prompts`. Whole groups follow one another in the
    generation batch, over all processes.
    """

    args: GRPOConfig
    _buffered_inputs: Any

    def __init__(
        self,
        *,
        start: Path,
        draws_ahead: bool,
        prompts: Sequence[Prompt],
        key: str,
        reward: RewardFunction,
        resources: StageResources,
        **arguments: Any,
    ) -> None:
        super().__init__(reward_funcs=cast(Any, reward), resources=resources, **arguments)
        if self.ref_model is not None:
            if resources.sharding == "none":
                self.ref_model.float()  # where it computes: see `load_model`
            else:
                sharding.shard(self.ref_model, resources, bool(self.args.bf16))
        self._start, self._key = start, key
        self._draws_ahead, self._ahead = draws_ahead, cast(Ahead | None, None)
        self._order: list[int] = list(cast(Any, self.train_dataset)["prompt"])
        self._prompts, self._reward = prompts, reward
        self.eos_token_ids = list(reward.stop_ids)
        self._group_size = cast(int, self.args.num_generations)
        self._micro_batches = cast(int, self.args.steps_per_generation)
        self._sampling = Sampling(
            temperature=self.args.temperature,
            top_p=self.args.top_p,
            max_tokens=cast(int, self.args.max_completion_length),
        )
        self._batch: list[Prompt] = []
        self._completions: list[Completion] = []
        self._gaps: list[Tensor] = []

    def create_accelerator_and_postprocess(self) -> None:
        """Called before TRL loads the reference model: as it was saved, so that processes share
        its file."""
        super().create_accelerator_and_postprocess()
        folder = Path(cast(Any, self._model).name_or_path)
        self.args.model_init_kwargs = {"dtype": saved_dtype(folder)}

    def run(self, work: Workspace, recorder: StepRecorder) -> None:
        """See `ResumableTrainer.run`. Raises UserError if the engine cannot be had or has too
        little memory."""
        policy = self.accelerator.unwrap_model(self.model)
        dtype: DType = "bfloat16" if self.args.bf16 else "float32"
        if self._draws_ahead:
            with (
                open_ahead(policy, self._start, dtype, self._resources) as live,
                Ahead(live, self._sampling, self.eos_token_ids) as self._ahead,
            ):
                self._require_room(live)
                super().run(work, recorder)
            return
        with open_rollouts(policy, dtype, self._resources, self.accelerator) as self._engine:
            self._require_room(self._engine)
            super().run(work, recorder)

    def _require_room(self, engine: Engine) -> None:
        needed = max(len(each.ids) for each in self._prompts) + self._sampling.max_tokens
        if engine.context < needed:
            raise UserError(
                f"vLLM has room for {engine.context} tokens, and a prompt with its completion may "
                f"have {needed}; raise resources.vllm_memory={self._resources.vllm_memory} (or the "
                "server's --gpu-memory-utilization)"
            )

    def longest_loss(self, model: nn.Module) -> Tensor:
        """Scores, reference and policy of the longest prompt with a completion of the most tokens:
        its log-probs, summed. Sampling is not tried: vLLM takes its memory when it starts."""
        prompt = max(self._prompts, key=lambda each: len(each.ids))
        filler = [prompt.ids[-1]] * self._sampling.max_tokens
        ids_T = torch.tensor([*prompt.ids, *filler], device=self.accelerator.device)
        if self._reward.reads_policy:
            fitting = max(1, self._resources.tokens_per_batch // len(ids_T))
            count = min(fitting, len(self._places)) if ids_T.is_cuda else 1
            nothing = np.zeros(len(filler), np.float32)
            policy = self.accelerator.unwrap_model(self.model)
            # Where the filler has no reward, the step says what is wrong.
            with suppress(NoReward), self.accelerator.autocast(), sharding.whole(policy):
                self._reward([prompt] * count, [filler] * count, [nothing] * count, policy)
        ids_BT = ids_T.expand(self.args.per_device_train_batch_size, -1)
        batch: tuple[Any, ...] = (ids_BT, torch.ones_like(ids_BT), len(filler))
        if self.ref_model is not None:
            with torch.no_grad():
                self._get_per_token_logps_and_entropies(self.ref_model, *batch)
        logps_BC, _, _ = self._get_per_token_logps_and_entropies(
            model, *batch, compute_entropy=True
        )
        return logps_BC.sum()

    # ------------------------------------------------------------ state beside the model
    def save_extra(self, folder: Path) -> None:
        """The reference model moves when it is synced, and TRL does not save it; what was drawn
        ahead came from weights that will be gone."""
        if self.args.sync_ref_model:
            weights = sharding.gathered(self._reference())
            if self.accelerator.is_main_process:
                save_file(weights, folder / REFERENCE)
        if self._ahead:
            pending = gather_object(self._ahead.pending())
            if self.accelerator.is_main_process:
                ahead.write(pending, folder)

    def load_extra(self, folder: Path) -> None:
        if self.args.sync_ref_model:
            sharding.load_weights(self._reference(), load_file(folder / REFERENCE))
        if self._ahead and (pending := ahead.read(folder)):
            self._ahead.take_up([pending[place] for place in self._places])

    def _reference(self) -> dict[str, Tensor]:
        model = self.accelerator.unwrap_model(self.ref_model)
        return {name: each.detach() for name, each in model.named_parameters()}

    # ------------------------------------------------------------ rollouts
    def _tokenize_prompts(self, prompts: list[int]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._batch = [self._prompts[index] for index in prompts]
        return [prompt.ids for prompt in self._batch], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Completions (N of this process) and their log-probs at sampling."""
        step = self.state.global_step
        requests = self._requests(step)
        pairs = zip(requests.prompts, requests.seeds, strict=True)
        if [ids for ids, seeds in pairs for _ in seeds] != prompt_ids:
            raise RuntimeError(f"step {step}: TRL gave other rows than the order of the data says")
        if self._ahead:
            self._completions = self._ahead.now(requests)
            if step + 1 < self.state.max_steps:
                self._ahead.start(self._requests(step + 1))
        else:
            drawn = self._engine.generate(
                requests.prompts, self._sampling, requests.seeds, self.eos_token_ids
            )
            self._completions = [completion for group in drawn for completion in group]
        return [each.ids for each in self._completions], [
            cast(Any, each.logprobs).tolist() for each in self._completions
        ]

    @property
    def _places(self) -> range:
        """Completions of a step that are this process's."""
        share = self.args.per_device_train_batch_size * self._micro_batches
        return range(
            self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share
        )

    def _requests(self, step: int) -> Requests:
        """Each completion has a seed of its own: a resumed run, or one cut into other processes,
        draws the same."""
        questions = len(self._places) * self.accelerator.num_processes // self._group_size
        requests = Requests([], [])
        for group, places in groupby(self._places, lambda place: place // self._group_size):
            prompt = self._prompts[self._order[step * questions + group]]
            key = f"{self._key}:{step}"
            requests.prompts.append(prompt.ids)
            requests.seeds.append([sample_seed(key, prompt.question_id, place) for place in places])
        return requests

    # ------------------------------------------------------------ rewards
    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[int],
        completions: list[str],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        """Rewards of the step's completions over all processes, (N, 1)."""
        result = self._rewards_of_this_process(completion_ids_list)
        rewards_N = self._gather(result.rewards)
        self._record(rewards_N, result)
        return rewards_N[:, None]

    def _rewards_of_this_process(self, completions: Sequence[Sequence[int]]) -> Rewards:
        """Raises RuntimeError in every process if a reward is no number in one of them: TRL would
        take it for a reward of 0."""
        result, fault = Rewards([], {}), None
        sampled = [cast(Any, completion.logprobs) for completion in self._completions]
        try:
            policy = self.accelerator.unwrap_model(self.model)
            gathered = sharding.whole(policy) if self._reward.reads_policy else nullcontext()
            with self.accelerator.autocast(), gathered:
                result = self._reward(self._batch, completions, sampled, policy)
            finite = torch.tensor(result.rewards, dtype=torch.float32).isfinite().tolist()
            if not all(finite):
                place = finite.index(False)
                raise NoReward(place, f"its reward is {result.rewards[place]}")
        except NoReward as error:
            fault = f"trace {self._trace_id(error.place)}: {error}"
        if faults := [each for each in gather_object([fault]) if each is not None]:
            raise RuntimeError(faults[0])
        return result

    def _trace_id(self, place: int) -> str:
        """`{question_id}-{sample}` of a completion of this process."""
        first = self.accelerator.process_index * len(self._batch)
        return f"{self._batch[place].question_id}-{(first + place) % self._group_size}"

    def _record(self, rewards_N: Tensor, result: Rewards) -> None:
        """Fill in the step's columns of `train_steps`."""
        rewards_QG = rewards_N.view(-1, self._group_size)
        flat_Q = rewards_QG.amax(1) == rewards_QG.amin(1)
        means: dict[str, Sequence[float | None]] = {
            **result.parts,
            "completion_tokens": [float(len(each.ids)) for each in self._completions],
            "clipped": [float(each.finish_reason == "length") for each in self._completions],
        }
        self._recorder.parts.update(
            {name: self._mean(values) for name, values in means.items()},
            reward=rewards_N.mean().item(),
            reward_std=rewards_QG.std(1).mean().item(),
            zero_std_groups=flat_Q.float().mean().item(),
        )

    def _mean(self, values: Sequence[float | None]) -> float | None:
        """Over what has a value, in all processes."""
        values_N = self._gather([0.0 if value is None else value for value in values])
        known_N = values_N[self._gather([float(value is not None) for value in values]).bool()]
        return known_N.mean().item() if len(known_N) else None

    def _gather(self, values: Sequence[float]) -> Tensor:
        return gather(torch.tensor(values, dtype=torch.float32, device=self.accelerator.device))

    # ------------------------------------------------------------ micro-batches
    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Tensor]:
        """The next micro-batch; at the first of a step, generate and score all of them.

        Completions of like length go together. The gradient of a step does not depend on it.
        """
        if self._step % self._micro_batches == 0:
            batch = self._generate_and_score_completions(generation_batch)
            if self._ahead:
                batch["old_per_token_logps"] = batch["sampling_per_token_logps"]
            order_N = batch["completion_mask"].sum(1).argsort(descending=True, stable=True)
            self._buffered_inputs = [
                {name: rows[chunk_B] for name, rows in batch.items() if rows.dim() > 0}
                for chunk_B in order_N.chunk(self._micro_batches)
            ]
        return self._buffered_inputs[self._step % self._micro_batches]

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's log-probs (B, C), without computing columns that are padding in every row."""
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

    # ------------------------------------------------------------ sampler against trainer
    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """TRL's loss; its log-probs, of the policy that has just sampled, are compared with those
        at sampling."""
        loss = super()._compute_loss(model, inputs)
        gap_BC = self._logps_BC.double() - inputs["sampling_per_token_logps"]
        self._gaps.append(gap_BC[inputs["completion_mask"].bool()])
        if len(self._gaps) == self._micro_batches:
            self._record_gap(torch.cat(self._gaps))
            self._gaps = []
        return loss

    def _record_gap(self, gap_T: Tensor) -> None:
        """Over the tokens of all processes."""
        mine = [gap_T.new_tensor(len(gap_T)), gap_T.abs().sum(), gap_T.exp().sum()]
        tokens, apart, ratios = self.accelerator.reduce(torch.stack(mine), "sum").tolist()
        self._recorder.parts |= {
            "rollout_gap_mean": apart / tokens,
            "rollout_gap_max": gather(gap_T.abs().max()).max().item(),
            "rollout_ratio": ratios / tokens,
        }
