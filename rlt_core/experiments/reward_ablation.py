"""The use of each part of the reward: teachers of other rewards, their traces, their students.

All traces are scored with the config's own reward, so that their parts can be compared;
diagnostics measure the failures that the paper names (repetition, copying, over-long explanations).
"""

from rlt_core.config import Config, RewardSpec
from rlt_core.errors import UserError
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.table import Table
from rlt_core.graph import Node


def reward_ablation(config: Config) -> Node:
    """The config's reward first, then one teacher a change."""
    nodes = Nodes(config)
    table = Table(nodes, "reward-ablation")
    table.add("Base model", "base", nodes.student_base)
    # Every teacher writes one trace a question; the pipeline's RLT may write several.
    ours = "rlt" if config.trace_generation.n == 1 else "rlt-one-trace"
    for variant, reward in {ours: config.reward, **variants(config)}.items():

        def student(seed: int, variant: str = variant, reward: RewardSpec = reward) -> Node:
            teacher = nodes.teacher_grpo(seed, reward, "" if variant == ours else variant)
            traces = nodes.traces(teacher, variant, seed, n=1)
            table.parts.append(nodes.scores(traces, teacher, variant, seed))
            return nodes.student_sft(variant, seed, traces)

        name = f"Reward of lambda {reward.kl_weight:g}, alpha {reward.alpha:g}"
        baseline = "base" if variant == ours else ours
        table.add(name, variant, student, baseline=baseline)
    return table.report()


def variants(config: Config) -> dict[str, RewardSpec]:
    """Name -> the config's reward with something left out or weighed otherwise."""
    ablation, reward = config.reward_ablation, config.reward
    if ablation is None:
        raise UserError(
            f"profile {config.profile} has no reward_ablation; set reward_ablation.kl_weights"
        )
    changes = {
        "r_ss-only": {"kl_weight": 0.0, "alpha": 0.0},
        "no-extremes": {"alpha": 0.0},
        "no-kl": {"kl_weight": 0.0},
        **{f"lambda-{value:g}": {"kl_weight": value} for value in ablation.kl_weights},
        **{f"alpha-{value:g}": {"alpha": value} for value in ablation.alphas},
    }
    found = {name: reward.replaced(**change) for name, change in changes.items()}
    return {name: one for name, one in found.items() if one != reward}
