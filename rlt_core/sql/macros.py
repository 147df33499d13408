"""The reward of `rlt_core.reward.formula` as SQL macros, for stored log-probs.

    rlt_reward(solution_logprobs, student_think_logprobs, teacher_think_logprobs, alpha, kl_weight)

and its parts: `rlt_token_kl`, `rlt_r_ss`, `rlt_r_kl`, `rlt_penalty`, `rlt_total`. Further
parameters are the fields of `RewardSpec`, by name, with its defaults. A test compares the macros
with `rlt_core.reward.formula`, the reference. NULL log-probs (a trace that was too long) and an
empty solution give NULL. Think log-probs of unequal length are an error, as in Python.
"""

from collections.abc import Sequence

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


def _passed(names: Sequence[str]) -> str:
    """Return a macro's own parameters as named arguments of another macro."""
    return ", ".join(f"{name} := {name}" for name in names)


_DEFAULT = RewardSpec()
_THINK = f"think_kl := null::double[], {arguments(_DEFAULT, THINK)}"

MACROS: dict[str, str] = {
    f"rlt_token_kl(student_think_logprobs, teacher_think_logprobs, "
    f"think_kl := null::double[], {arguments(_DEFAULT, TOKEN)})": """
        list_transform(
          case
            when len(student_think_logprobs) <> len(teacher_think_logprobs)
            then error(
              len(student_think_logprobs) || ' student and ' || len(teacher_think_logprobs)
              || ' teacher think log-probs'
            )
            when kl = 'full' and len(think_kl) <> len(teacher_think_logprobs)
            then error(
              'kl=full: ' || len(teacher_think_logprobs) || ' tokens, full-vocabulary KL of '
              || len(think_kl)
            )
            when kl = 'full' then think_kl::double[]
            when kl in ('k1', 'k3') then
              list_transform(
                teacher_think_logprobs,
                lambda teacher, i: teacher::double - student_think_logprobs[i]::double
              )
            else error('kl: ' || kl || ' is none of k1, k3, full')
          end,
          lambda d: least(case when kl = 'k3' then exp(-d) - 1 + d else d end, clip_kl)
        )""",
    f"rlt_r_ss(solution_logprobs, alpha, {arguments(_DEFAULT, SOLUTION)})": """
        list_transform(
          [list_transform(
            solution_logprobs, lambda logprob: greatest(logprob::double, -clip_logprob)
          )],
          lambda clipped: list_aggregate(clipped, solution_reduction)
            + alpha::double * list_aggregate(clipped, solution_extreme)
        )[1]""",
    f"rlt_r_kl(student_think_logprobs, teacher_think_logprobs, alpha, {_THINK})": f"""
        list_transform(
          [rlt_token_kl(
            student_think_logprobs, teacher_think_logprobs, think_kl, {_passed(TOKEN)}
          )],
          lambda k: case
            when len(k) = 0 then empty_think_kl * (1 + alpha::double)
            else list_aggregate(k, think_reduction)
              + alpha::double * list_aggregate(k, think_extreme)
          end
        )[1]""",
    f"rlt_penalty(closed, {arguments(_DEFAULT, PENALTY)})": """
        case closed when true then 0::double when false then unclosed_penalty::double end""",
    "rlt_total(r_ss, r_kl, penalty, kl_weight)": """
        r_ss - kl_weight::double * r_kl + penalty""",
    "rlt_reward(solution_logprobs, student_think_logprobs, teacher_think_logprobs, alpha, "
    "kl_weight, closed := true, think_kl := null::double[], "
    f"{arguments(_DEFAULT, REWARD)})": f"""
        rlt_total(
          rlt_r_ss(solution_logprobs, alpha, {_passed(SOLUTION)}),
          rlt_r_kl(
            student_think_logprobs, teacher_think_logprobs, alpha, think_kl, {_passed(THINK)}
          ),
          rlt_penalty(closed, {_passed(PENALTY)}),
          kl_weight
        )""",
}
"""Signature -> body; a macro comes after those that it calls.

`list_transform([x], lambda k: …)[1]` names x, so that it is computed once.
"""


def create(connection: duckdb.DuckDBPyConnection) -> None:
    """Define the macros on a connection."""
    for signature, body in MACROS.items():
        connection.execute(f"create or replace temp macro {signature} as {body}")
