"""Log-probs of selected tokens, and the rows of `scores`.

Only the hidden states that predict a selected token meet the output embedding, a chunk at a time:
nothing of shape (batch, tokens, vocabulary) ever exists.

Shapes: B sequences of a batch, T positions, D width, N selected positions, C positions of a
chunk, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlt_core.config import RewardSpec
from rlt_core.control import Control
from rlt_core.prompts import Context, Prompter
from rlt_core.reward import RewardParts, rank_rewards, reward_parts

LOGPROBS = NDArray[np.float32]
Loader = Callable[[], PreTrainedModel]
"""Gives a model; may keep it for the next call, or load it anew to have one at a time in memory."""
Row = dict[str, Any]

CHUNK_POSITIONS, CHUNK_LOGITS = 4096, 1 << 26
"""Positions, and logits, that exist at once at most."""
CPU_TOKENS = 2048
"""Tokens of a pass on a CPU at most: activations that fit its caches halve the time."""
LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config fields of models that change logits after the output embedding."""


# ---------------------------------------------------------------- selected log-probs
def selected_logprobs(
    model: nn.Module,
    contexts_ids: Sequence[Sequence[int]],
    spans: Sequence[Sequence[tuple[int, int]]],
    temperature: float,
    tokens_per_batch: int,
    *,
    chunk_positions: int = CHUNK_POSITIONS,
    control: Control | None = None,
) -> list[list[LOGPROBS]]:
    """log p(ids[start:end] | ids before each) for every span of every context, in input order.

    `model` is a causal language model or a PEFT wrapper of one, in whatever mode: it is put into
    eval mode meanwhile. Logits are divided by `temperature`; log-sum-exp is taken in float32.
    Contexts of like length share a forward pass of at most `tokens_per_batch` tokens (a longer
    one runs alone); how they are batched changes results by rounding alone. Returns float32
    arrays, one a span, as long as the span. Raises ValueError for a span outside its context or
    one that begins at 0, where nothing precedes the token.
    """
    control = control or Control()
    decoder, head = _decoder_and_head(model)
    if head.weight.device.type == "cpu":
        tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
    rows_per_chunk = max(1, min(chunk_positions, CHUNK_LOGITS // head.out_features))
    positions = [_positions(len(ids), each) for ids, each in zip(contexts_ids, spans, strict=True)]
    # What stands behind the last position that predicts cannot matter: it is not computed.
    lengths = [int(where.max()) + 1 if where.size else 0 for where in positions]
    flat: list[LOGPROBS] = [np.empty(0, np.float32) for _ in contexts_ids]
    done, total = 0, sum(lengths)
    with torch.no_grad(), eval_mode(model):
        for batch in length_batches(lengths, tokens_per_batch):
            control.check()
            hidden_BTD = _hidden(decoder, [contexts_ids[i][: lengths[i]] for i in batch])
            where_B = [torch.from_numpy(positions[i]) for i in batch]
            hidden_ND = torch.cat([hidden_BTD[b, where] for b, where in enumerate(where_B)])
            targets = np.concatenate([np.asarray(contexts_ids[i])[positions[i] + 1] for i in batch])
            targets_N = torch.from_numpy(targets).to(hidden_ND.device)
            logprobs_N = _logprobs(head, hidden_ND, targets_N, temperature, rows_per_chunk)
            sizes = np.cumsum([positions[i].size for i in batch])[:-1]
            for i, values in zip(batch, np.split(logprobs_N, sizes), strict=True):
                flat[i] = values
            done += sum(lengths[i] for i in batch)
            control.progress(done, total, {})
    return [
        np.split(values, np.cumsum([end - start for start, end in each])[:-1]) if each else []
        for values, each in zip(flat, spans, strict=True)
    ]


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of like length, longest first; empty ones are left out.

    A batch padded to its longest sequence has at most `tokens_per_batch` tokens, unless it is a
    single sequence.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    while order:
        size = max(1, tokens_per_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _positions(length: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Positions whose hidden states predict the spans' tokens: one before each."""
    for start, end in spans:
        if not (0 <= start <= end <= length) or (start == 0 and end > 0):
            raise ValueError(f"span {start}:{end} in a context of {length} tokens")
    ranges = [np.arange(start - 1, end - 1) for start, end in spans if end > start]
    return np.concatenate(ranges) if ranges else np.empty(0, np.int64)


def _hidden(decoder: nn.Module, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Last hidden states (B, T, D), padded on the right.

    Attention is causal, so no real token sees the padding behind it: with neither mask nor
    explicit positions, attention keeps its fast path.
    """
    device = next(decoder.parameters()).device
    ids_BT = nn.utils.rnn.pad_sequence(
        [torch.tensor(sequence) for sequence in sequences], batch_first=True
    )
    return decoder(input_ids=ids_BT.to(device), use_cache=False).last_hidden_state


def _logprobs(
    head: nn.Module, hidden_ND: Tensor, targets_N: Tensor, temperature: float, chunk: int
) -> LOGPROBS:
    """log softmax(head(hidden) / temperature)[target] of each position, (N,)."""
    parts = []
    for hidden_CD, targets_C in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
        logits_CV = head(hidden_CD).float().div_(temperature)
        chosen_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
        parts.append(chosen_C - logits_CV.logsumexp(1))
    return torch.cat(parts).cpu().numpy()


def _decoder_and_head(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """The transformer without its output embedding, and that embedding.

    Adapters (LoRA) sit inside both. Raises ValueError for a model that transforms its logits
    after the output embedding.
    """
    unwrap = getattr(model, "get_base_model", None)  # a PEFT wrapper's
    base = unwrap() if unwrap else model
    causal = cast(PreTrainedModel, base)
    for name in LOGIT_TRANSFORMS:
        if getattr(causal.config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"{type(causal).__name__} has {name}: its log-probs are not supported")
    return causal.get_decoder(), cast(nn.Linear, causal.get_output_embeddings())


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---------------------------------------------------------------- scores of traces
@dataclasses.dataclass(frozen=True)
class _Job:
    """A trace and its two contexts."""

    trace: Mapping[str, Any]
    student: Context
    teacher: Context

    @property
    def solution(self) -> tuple[int, int]:
        assert self.student.solution is not None
        return self.student.solution


def score_traces(
    traces: Sequence[Mapping[str, Any]],
    questions: Mapping[str, Mapping[str, Any]],
    *,
    student: str,
    load_student: Loader,
    load_teacher: Loader,
    student_prompter: Prompter,
    teacher_prompter: Prompter,
    spec: RewardSpec,
    max_tokens: int,
    tokens_per_batch: int,
    control: Control | None = None,
) -> list[Row]:
    """Rows of `scores`, one a trace in input order, `rank` still empty (see `assign_ranks`).

    `traces` are rows of the table `traces`, `questions` rows of `questions` by id; `student` is
    the key of the reward student. First the student scores everything, then the teacher: each
    is asked of its loader once. A trace whose student context exceeds `max_tokens` is not scored:
    status `too_long`.
    """
    jobs = [_job(trace, questions, student_prompter, teacher_prompter) for trace in traces]
    kept = [i for i, job in enumerate(jobs) if len(job.student.ids) <= max_tokens]

    control = control or Control()
    by_student: dict[int, list[LOGPROBS]] = {}
    by_teacher: dict[int, list[LOGPROBS]] = {}
    if kept:
        solution_and_think = selected_logprobs(
            load_student(),
            [jobs[i].student.ids for i in kept],
            [[jobs[i].solution, jobs[i].student.think] for i in kept],
            spec.temperature,
            tokens_per_batch,
            control=control.part(0, 2),
        )
        by_student = dict(zip(kept, solution_and_think, strict=True))
        think = selected_logprobs(
            load_teacher(),
            [jobs[i].teacher.ids for i in kept],
            [[jobs[i].teacher.think] for i in kept],
            spec.temperature,
            tokens_per_batch,
            control=control.part(1, 2),
        )
        by_teacher = dict(zip(kept, think, strict=True))
    return [
        _score_row(job, student, spec, by_student.get(i), by_teacher.get(i))
        for i, job in enumerate(jobs)
    ]


def assign_ranks(rows: Sequence[Row]) -> list[Row]:
    """The rows with `rank` filled: 1 is the best reward among a question's scored completions.

    Completions compete if question, seed, teacher and student are the same; of equal rewards the
    lower sample ranks better. A row without a reward has no rank.
    """
    ranked = [{**row, "rank": None} for row in rows]
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in ranked:
        if row["reward"] is not None:
            key = tuple(row[name] for name in ("question_id", "seed", "teacher", "student"))
            groups[key].append(row)
    for group in groups.values():
        group.sort(key=lambda row: row["sample"])
        for row, rank in zip(group, rank_rewards([row["reward"] for row in group]), strict=True):
            row["rank"] = rank
    return ranked


def _job(
    trace: Mapping[str, Any],
    questions: Mapping[str, Mapping[str, Any]],
    student_prompter: Prompter,
    teacher_prompter: Prompter,
) -> _Job:
    row = questions[trace["question_id"]]
    question, solution, think_ids = row["question"], row["solution"], trace["token_ids"]
    return _Job(
        trace,
        student_prompter.student_context(question, think_ids, solution),
        teacher_prompter.teacher_context(question, solution, think_ids),
    )


def _score_row(
    job: _Job,
    student: str,
    spec: RewardSpec,
    by_student: list[LOGPROBS] | None,
    by_teacher: list[LOGPROBS] | None,
) -> Row:
    trace = job.trace
    start, end = job.solution
    row: Row = {
        **{name: trace[name] for name in ("trace_id", "question_id", "seed", "teacher", "sample")},
        "student": student,
        "status": "too_long",
        "rank": None,
        "closed": trace["closed"],
        "think_tokens": len(trace["token_ids"]),
        "solution_tokens": end - start,
        "temperature": spec.temperature,
        **dict.fromkeys(field.name for field in dataclasses.fields(RewardParts)),
        "student_solution_logprobs": None,
        "student_think_logprobs": None,
        "teacher_think_logprobs": None,
    }
    if by_student is None or by_teacher is None:
        return row
    logprobs = {
        "student_solution_logprobs": by_student[0],
        "student_think_logprobs": by_student[1],
        "teacher_think_logprobs": by_teacher[0],
    }
    parts = reward_parts(**logprobs, closed=trace["closed"], spec=spec)
    return row | {"status": "scored"} | dataclasses.asdict(parts) | logprobs
