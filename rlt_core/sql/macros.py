"""The reward of `rlt_core.reward.formula` as SQL macros (`macros.sql`), for stored log-probs.

    rlt_reward(solution_logprobs, student_think_logprobs, teacher_think_logprobs, alpha, kl_weight)

and its parts: `rlt_token_kl`, `rlt_r_ss`, `rlt_r_kl`, `rlt_penalty`, `rlt_total`. Further
parameters are the fields of `RewardSpec`, by name, with its defaults. A test compares the macros
with `rlt_core.reward.formula`, the reference. NULL log-probs (a trace that was too long) and an
empty solution give NULL. Think log-probs of unequal length are an error, as in Python.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from rlt_core.config import RewardSpec

SOLUTION = ("solution_reduction", "solution_extreme", "clip_logprob")
"""Named parameters of `rlt_r_ss`, fields of the spec."""
TOKEN = ("kl", "clip_kl")
"""Named parameters of `rlt_token_kl`."""
THINK = (*TOKEN, "think_reduction", "think_extreme", "empty_think_kl")
"""Named parameters of `rlt_r_kl`."""
PENALTY = ("unclosed_penalty",)
"""Named parameters of `rlt_penalty`."""
REWARD = (*SOLUTION, *THINK, *PENALTY)
"""Named parameters of `rlt_reward`; alpha and lambda are positional."""


def literal(value: str | float | None) -> str:
    """Return a value as a SQL literal; numbers are doubles."""
    if value is None:
        return "null::double"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return f"{float(value)!r}::double"


def arguments(spec: RewardSpec, names: Sequence[str]) -> str:
    """Return fields of a spec as named arguments of a macro: `kl := 'k1', …`."""
    return ", ".join(f"{name} := {literal(getattr(spec, name))}" for name in names)


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Define the macros on a connection."""
    named = {"solution": SOLUTION, "token": TOKEN, "think": THINK, "penalty": PENALTY}
    spec, text = RewardSpec(), Path(__file__).with_name("macros.sql").read_text(encoding="utf-8")
    connection.execute(text.format(**{name: arguments(spec, each) for name, each in named.items()}))
