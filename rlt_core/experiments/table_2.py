"""Table 2, RL cold-start: reinforcement learning of answers from different starts."""

from functools import partial

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.nodes import Nodes
from rlt_core.experiments.table import OfSeed, Table, paper_size
from rlt_core.graph import Node


def table_2(config: Config) -> Node:
    """Return the paper's rows in its order; each cold start before RL is above its row."""
    if config.student_grpo is None:
        raise UserError(f"profile {config.profile} has no student_grpo; set student_grpo.steps")
    nodes = Nodes(config)
    table = Table(nodes, "table-2")
    table.add("Base model", "base", nodes.student_base)
    theirs = paper_size(config, config.student or config.base_model) == "7B"

    def quoted(row: str) -> str | None:
        return row if theirs else None

    _after_rl(
        table, "RL, no cold-start", "none", lambda _: nodes.student_base,
        quoted("RL, no cold-start (7B)"),
    )  # fmt: skip
    raw = partial(_raw_traces, nodes)
    _rows(
        table, "Raw traces of RL", "raw",
        lambda seed: nodes.student_sft("raw", seed, raw(seed)), quoted("RL cold-start (raw) + RL"),
    )  # fmt: skip
    _refined_rows(table, raw, quoted("RL cold-start (GPT) + RL"))
    dataset = partial(nodes.dataset_student, "dataset")
    _rows(table, "Data set's traces", "dataset", dataset, quoted("Bespoke-7B + RL"))
    _rows(table, "RLT traces", "rlt", nodes.rlt_student, quoted("RLT-7B + RL"))
    return table.report(primary="rlt+rl")


def _raw_traces(nodes: Nodes, seed: int) -> Node:
    """Return the thoughts of a model of the teacher's size that RL of answers alone has trained.
    Where students have that size, it is the student without a cold start."""
    same = nodes.base.key == nodes.student_base.key
    solver = nodes.student_grpo(nodes.base, "none" if same else "solver", seed)
    return nodes.traces(solver, "raw", seed, context="student")


def _refined_rows(table: Table, raw: OfSeed, paper: str | None) -> None:
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

    def student(seed: int) -> Node:
        return nodes.student_sft(variant, seed, nodes.refined_traces(raw(seed), variant, seed))

    _rows(table, "Refined traces of RL", variant, student, paper)


def _rows(table: Table, name: str, variant: str, start: OfSeed, paper: str | None) -> None:
    table.add(name, variant, start, baseline="base")
    _after_rl(table, f"{name} + RL", variant, start, paper)


def _after_rl(table: Table, name: str, variant: str, start: OfSeed, paper: str | None) -> None:
    def student(seed: int) -> Node:
        return table.nodes.student_grpo(start(seed), variant, seed)

    baseline = None if variant == "dataset" else "dataset+rl"
    table.add(name, f"{variant}+rl", student, paper, baseline)
