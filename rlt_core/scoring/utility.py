"""Measured utility of a trace: one SFT step on it, and what that does for held-out solutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlt_core.progress import Progress
from rlt_core.prompts.renderer import IGNORED, Context, Renderer
from rlt_core.scoring.logprobs import selected_logprobs
from rlt_core.scoring.tokens import Loader

ADAM_EPSILON = 1e-8
Row = dict[str, Any]


def with_utility(
    rows: Sequence[Row],
    think_ids: Sequence[Sequence[int] | None],
    questions: Mapping[str, Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    renderer: Renderer,
    load_student: Loader,
    learning_rate: float,
    tokens_per_batch: int,
    progress: Progress | None = None,
) -> list[Row]:
    """Return rows of `scores`, with `utility` those of which the explanation's ids are given.

    utility: mean over `held_out` questions h of log p(S_h | q_h, t_h) per token after one SFT step
    of the student on (q, t, S), minus that before it. t_h is the data set's own explanation of h,
    which has to arrive at S_h: after a wrong one a student that follows it finds S_h unlikely. The
    step is the first of AdamW without weight decay on the mean loss of the assistant turn,
    lr * g / (|g| + 1e-8); every trace starts from the same weights.
    `renderer`: the student's; `load_student` gives float32 weights, which are the same afterwards.
    """
    if all(ids is None for ids in think_ids):
        return list(rows)
    contexts = [
        renderer.student_context(
            each["question"], renderer.encode_block(each["trace"]), each["solution"]
        )
        for each in held_out
    ]
    progress, measured = progress or Progress(), []
    with load_student() as student:
        weights = [each for each in student.parameters() if each.requires_grad]
        before = [each.detach().clone() for each in weights]
        start = _mean_logprob(student, contexts, tokens_per_batch)
        for row, ids in progress.over(zip(rows, think_ids, strict=True), len(rows)):
            if ids is None:
                measured.append(row)
                continue
            question = questions[row["question_id"]]
            turn = renderer.student_sft_row(question["question"], ids, question["solution"])
            loss = _loss(student, turn.input_ids, turn.labels)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
            with torch.no_grad():
                for weight, g in zip(weights, gradients, strict=True):
                    weight.sub_(learning_rate * g / (g.abs() + ADAM_EPSILON))
                after = _mean_logprob(student, contexts, tokens_per_batch)
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)
            measured.append(row | {"utility": after - start})
    return measured


def _loss(student: nn.Module, ids: Sequence[int], labels: Sequence[int]) -> Tensor:
    """Mean negative log-likelihood of the labelled tokens."""
    device = next(student.parameters()).device
    given, wanted = (torch.tensor([each], device=device) for each in (ids, labels))
    logits_TV = student(input_ids=given).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits_TV, wanted[0, 1:], ignore_index=IGNORED)


def _mean_logprob(student: nn.Module, contexts: Sequence[Context], tokens_per_batch: int) -> float:
    """Mean over contexts of the mean log-prob of a solution's tokens, at temperature 1."""
    spans = [[(each.solution.start, each.solution.end)] for each in contexts if each.solution]
    found = selected_logprobs(
        student, [each.ids for each in contexts], spans, 1.0, tokens_per_batch
    )
    return float(sum(float(logprobs.mean()) for (logprobs,) in found) / len(found))
