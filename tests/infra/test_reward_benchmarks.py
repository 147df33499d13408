"""The benchmarks of the reward compare ways that do the same work, and count it right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from infra.benchmarks.reward import head, prefixes, throughput
from infra.benchmarks.reward.cases import Case, tiny_case
from infra.benchmarks.reward.plain import reading_often, reading_once
from infra.benchmarks.reward.work import needed
from rlt_core.scoring import selected_logprobs


@pytest.fixture(scope="module")
def case() -> Case:
    return tiny_case(questions=2, group=3)


def test_the_plain_loop_and_ours_give_the_same_rewards(case: Case) -> None:
    plain = reading_often(case)
    assert reading_once(case) == pytest.approx(plain, abs=1e-6)
    assert throughput.our_rewards(case) == pytest.approx(plain, abs=1e-3)
    assert throughput.rewards_with_rivals(case) == pytest.approx(plain, abs=1e-3)
    assert np.ptp(plain) > 0.1  # equal rewards would agree whatever was scored


def test_the_loop_notices_models_that_change_places(case: Case) -> None:
    swapped = replace(case, student=case.teacher, teacher=case.student)
    assert np.abs(np.subtract(reading_often(swapped), reading_often(case))).max() > 0.1


def test_both_heads_agree() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 5000, bias=False)
    hidden_ND, targets_N = torch.randn(7, 16) * 9, torch.randint(5000, (7,))
    plain = head.plain(linear, hidden_ND, targets_N)
    assert head.ours(linear, hidden_ND, targets_N) == pytest.approx(plain, abs=1e-4)


def test_needed_work_is_what_a_pass_without_padding_takes(case: Case) -> None:
    """PyTorch's own counter sees all pairs in attention, a causal one needs half of them."""
    ids = [5] * 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        case.student(input_ids=torch.tensor([ids]), use_cache=False)
    counts = counter.get_flop_counts()["Global"]
    products = sum(each for name, each in counts.items() if str(name) in ("aten.mm", "aten.addmm"))
    config = case.student.config
    attention = 4 * config.hidden_size * config.num_hidden_layers * 40 * 40 / 2
    # The span 1:41 of 41 tokens is predicted by all positions of the 40.
    work = needed(case.student, [[*ids, 5]], [[(1, 41)]])
    assert work.alone == work.shared == products + attention


def test_shared_work_counts_a_common_beginning_once(case: Case) -> None:
    """Two sequences that differ in their last token alone need a pass, and a token more."""
    one = needed(case.student, [[1] * 30 + [2]], [[(30, 31)]])
    two = needed(case.student, [[1] * 30 + [2], [1] * 30 + [3]], [[(30, 31)]] * 2)
    assert two.alone == 2 * one.alone
    assert one.shared < two.shared < 1.15 * one.shared


def test_the_choice_is_read_off_what_the_decoder_is_given(case: Case) -> None:
    ids = [[7] * 20 + [i] for i in range(4)]

    def score(share: bool) -> object:
        spans = [[(20, 21)]] * 4
        return selected_logprobs(case.student, ids, spans, 1.0, 64, share_prefixes=share)

    assert prefixes.shares_prefixes(case.student, lambda: score(True))
    assert not prefixes.shares_prefixes(case.student, lambda: score(False))
