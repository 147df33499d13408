"""Table 2, RL cold-start: reinforcement learning of answers from different starts."""

from __future__ import annotations

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.students import rlt_student
from rlt_core.experiments.table import BySeed, Table, paper_size
from rlt_core.graph import Node


def table_2(config: Config) -> Node:
    """The paper's rows in its order; each cold start before RL stands above its row."""
    if config.student_grpo is None:
        raise UserError(f"profile {config.profile} has no student_grpo; set student_grpo.steps")
    nodes = Nodes(config)
    table = Table(nodes, "table-2")
    table.given("Base model", "base", nodes.student_base)
    untouched = {seed: nodes.student_base for seed in config.seeds}
    theirs = paper_size(config, config.student or config.base_model) == "7B"

    def quoted(row: str) -> str | None:
        return row if theirs else None

    _after_rl(table, "RL, no cold-start", "none", untouched, quoted("RL, no cold-start (7B)"))
    raw = {seed: _raw_traces(nodes, seed) for seed in config.seeds}
    starts = {seed: nodes.student_sft("raw", seed, traces) for seed, traces in raw.items()}
    _rows(table, "Raw traces of RL", "raw", starts, quoted("RL cold-start (raw) + RL"))
    _refined_rows(table, raw, quoted("RL cold-start (GPT) + RL"))
    starts = {seed: nodes.student_sft("dataset", seed) for seed in config.seeds}
    _rows(table, "Data set's traces", "dataset", starts, quoted("Bespoke-7B + RL"))
    starts = {seed: rlt_student(nodes, seed) for seed in config.seeds}
    _rows(table, "RLT traces", "rlt", starts, quoted("RLT-7B + RL"))
    return table.report(primary="rlt+rl")


def _raw_traces(nodes: Nodes, seed: int) -> Node:
    """Thoughts of a model of the teacher's size that correctness alone has trained, as they are.
    Where students are of that size it is the student without a cold start."""
    same = nodes.base.key == nodes.student_base.key
    solver = nodes.student_grpo(nodes.base, "none" if same else "solver", seed)
    return nodes.traces(solver, "raw", seed, context="student")


def _refined_rows(table: Table, raw: BySeed, paper: str | None) -> None:
    nodes = table.nodes
    refinement = nodes.config.trace_refinement
    if refinement is None:
        why = (
            "no LLM is named that refines traces; set trace_refinement.name and "
            "trace_refinement.model, and RLT_REFINE_BASE_URL"
        )
        table.missing("Refined traces of RL + RL", "refined+rl", why, paper)
        return
    variant = f"raw-{refinement.name}"
    starts = {
        seed: nodes.student_sft(variant, seed, nodes.refined_traces(traces, variant, seed))
        for seed, traces in raw.items()
    }
    _rows(table, "Refined traces of RL", variant, starts, paper)


def _rows(table: Table, name: str, variant: str, starts: BySeed, paper: str | None) -> None:
    table.trained(name, variant, starts, baseline="base")
    _after_rl(table, f"{name} + RL", variant, starts, paper)


def _after_rl(table: Table, name: str, variant: str, starts: BySeed, paper: str | None) -> None:
    nodes = table.nodes
    models = {seed: nodes.student_grpo(start, variant, seed) for seed, start in starts.items()}
    baseline = None if variant == "dataset" else "dataset+rl"
    table.trained(name, f"{variant}+rl", models, paper, baseline)
