"""Which teacher for which student: every teacher's explanations, scored for every student."""

from collections.abc import Iterator

from rlt_core.config import Config
from rlt_core.errors import UserError
from rlt_core.experiments.nodes import Nodes
from rlt_core.graph import Node, upstream

NAME = "bench-teachers"


def bench_teachers(config: Config) -> Node:
    """One set of explanations a teacher, one of scores a teacher and student."""
    nodes = Nodes(config)
    return nodes.report(NAME, upstream(_parts(nodes)))


def pair(teacher: str, student: str) -> str:
    """Variant of the nodes of a teacher and a student."""
    return f"{teacher}-for-{student}"


def _parts(nodes: Nodes) -> Iterator[Node]:
    bench = nodes.config.teacher_bench
    if bench and not (bench.teachers or nodes.config.endpoint_teacher):
        raise UserError(
            "no teacher explains: set teacher_bench.teachers.NAME, or endpoint_teacher.name and "
            "endpoint_teacher.model"
        )
    students = {"student": nodes.student_base}
    if bench:
        students = {name: nodes.model(source, name) for name, source in bench.students.items()}
    if bench and bench.train:
        yield from (nodes.evaluation(model, name, None) for name, model in students.items())
    for seed in nodes.config.seeds:
        for teacher, model, traces in _taught(nodes, seed):
            for name, student in students.items():
                variant = pair(teacher, name)
                scores = nodes.scores(traces, model, variant, seed, student=student)
                yield scores
                if bench and bench.train:
                    kept = nodes.selected_traces(traces, scores, variant, seed)
                    trained = nodes.student_sft(variant, seed, kept, base=student)
                    yield nodes.evaluation(trained, variant, seed)


def _taught(nodes: Nodes, seed: int) -> Iterator[tuple[str, Node | None, Node]]:
    """Yield each teacher's name, its model, if there is one here, and its explanations."""
    bench, endpoint = nodes.config.teacher_bench, nodes.config.endpoint_teacher
    if bench:
        teachers = {name: nodes.model(source, name) for name, source in bench.teachers.items()}
    else:
        teachers = {"before-rl": nodes.teacher_sft(seed), "rlt": nodes.teacher_grpo(seed)}
    if endpoint:
        yield endpoint.name, None, nodes.endpoint_traces(endpoint.name, seed)
    for name, model in teachers.items():
        yield name, model, nodes.traces(model, name, seed)
