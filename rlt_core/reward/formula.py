"""The RLT reward as a pure function of per-token log-probs, so that stored log-probs replay it.

Source: arXiv 2506.08388, eq. 3-5, with the numbers of the authors' code. Everything is float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlt_core.config import Reduction, RewardSpec
from rlt_core.extensions import load

Floats = NDArray[np.float64]

REDUCTIONS: dict[Reduction, Callable[[Floats], float]] = {
    "mean": lambda values: float(values.mean()),
    "min": lambda values: float(values.min()),
    "max": lambda values: float(values.max()),
    "median": lambda values: float(np.median(values)),
    "sum": lambda values: float(values.sum()),
}


@dataclass(frozen=True)
class RewardParts:
    """A reward and its parts, which are named after the default reductions."""

    reward: float
    r_ss: float
    r_kl: float | None
    """None, like `kl_mean` and `kl_max`: there are no log-probs of the teacher."""
    solution_mean: float
    """`solution_reduction` of log pi_S(s | q, t)."""
    solution_min: float
    """`solution_extreme` of these log-probs."""
    kl_mean: float | None
    """`think_reduction` of the KL at each token."""
    kl_max: float | None
    """`think_extreme` of this KL."""
    penalty: float


def reward_parts(
    student_solution_logprobs: ArrayLike,
    student_think_logprobs: ArrayLike,
    teacher_think_logprobs: ArrayLike | None,
    closed: bool,
    spec: RewardSpec,
    think_kl: ArrayLike | None = None,
) -> RewardParts:
    """Compute the reward of one explanation.

    r_SS = mean_s log pi_S(s | q, t) + alpha * min_s log pi_S(s | q, t)          (eq. 3)
    r_KL = mean_t k_t + alpha * max_t k_t, k_t as in `token_kl`                  (eq. 4)
    r    = r_SS - lambda * r_KL + penalty                                        (eq. 5)

    Log-probs are natural logarithms, one per token: solution (S,), think (T,) twice. Without the
    teacher's, r_KL is unknown and r = r_SS + penalty: nothing is put in its place. `think_kl`
    (T,): KL over the whole vocabulary, for `spec.kl` = full. An empty explanation counts
    `spec.empty_think_kl` for each reduction of k_t. Raises ValueError for an empty solution,
    arrays of unequal length, a missing `think_kl`, and values that are not finite. The user's own
    `spec.function` gets these parts and the log-probs and returns another reward.
    """
    solution = _checked("student_solution_logprobs", student_solution_logprobs)
    student_think = _checked("student_think_logprobs", student_think_logprobs)
    if not solution.size:
        raise ValueError("empty solution: it has no reward")
    if spec.clip_logprob is not None:
        solution = np.maximum(solution, -spec.clip_logprob)
    solution_mean = REDUCTIONS[spec.solution_reduction](solution)
    solution_min = REDUCTIONS[spec.solution_extreme](solution)
    r_ss = solution_mean + spec.alpha * solution_min
    penalty = 0.0 if closed else spec.unclosed_penalty
    r_kl = kl_mean = kl_max = teacher_think = None
    reward = r_ss + penalty
    if teacher_think_logprobs is not None:
        teacher_think = _checked("teacher_think_logprobs", teacher_think_logprobs)
        full = None if think_kl is None else _checked("think_kl", think_kl)
        kl = token_kl(student_think, teacher_think, full, spec)
        kl_mean, kl_max = (
            REDUCTIONS[reduction](kl) if kl.size else spec.empty_think_kl
            for reduction in (spec.think_reduction, spec.think_extreme)
        )
        r_kl = kl_mean + spec.alpha * kl_max
        reward = r_ss - spec.kl_weight * r_kl + penalty
    parts = RewardParts(reward, r_ss, r_kl, solution_mean, solution_min, kl_mean, kl_max, penalty)
    if spec.function is None:
        return parts
    if teacher_think is None:
        raise ValueError(f"{spec.function} needs the teacher's log-probs, and there are none")
    reward = float(load(spec.function)(parts, solution, student_think, teacher_think))
    if not np.isfinite(reward):
        raise ValueError(f"{spec.function} returned {reward}")
    return replace(parts, reward=reward)


def token_kl(
    student_think: Floats, teacher_think: Floats, full: Floats | None, spec: RewardSpec
) -> Floats:
    """Estimate KL(pi_T || pi_S) at each token t of the explanation, (T,).

    With d_t = log pi_T(t | q, s) - log pi_S(t | q), where t was sampled from pi_T:
    k1: d_t, unbiased, may be negative; k3: exp(-d_t) - 1 + d_t, unbiased and never negative
    (http://joschu.net/blog/kl-approx.html); full: sum_v pi_T(v) (log pi_T(v) - log pi_S(v)), given.
    """
    if student_think.size != teacher_think.size:
        raise ValueError(
            f"{student_think.size} student and {teacher_think.size} teacher think log-probs"
        )
    difference = teacher_think - student_think
    if spec.kl == "k1":
        kl = difference
    elif spec.kl == "k3":
        kl = np.expm1(-difference) + difference
    elif full is not None and full.size == difference.size:
        kl = full
    else:
        held = "none" if full is None else full.size
        raise ValueError(f"kl=full: {difference.size} tokens, full-vocabulary KL of {held}")
    return kl if spec.clip_kl is None else np.minimum(kl, spec.clip_kl)


def rank_rewards(rewards: Sequence[float]) -> list[int]:
    """Return the rank of each reward, 1 for the best; of equal rewards the earlier ranks better."""
    order = np.argsort(-np.asarray(rewards, dtype=np.float64), kind="stable")
    ranks = np.empty(len(rewards), dtype=int)
    ranks[order] = np.arange(1, len(rewards) + 1)
    return [int(rank) for rank in ranks]


def _checked(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one value per token, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: token {int(np.argmin(np.isfinite(array)))} is not finite")
    return array
