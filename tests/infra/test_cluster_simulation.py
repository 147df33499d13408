"""A simulated run is a schedule that a cluster could really carry out, and not a wasteful one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.benchmarks.cluster.costs import Costs, Drawn, drawing_s, lengths_of
from infra.benchmarks.cluster.makespan import Layout, Plan, longest_chain, simulate
from rlt_core.estimate.shapes import Shapes
from rlt_core.estimate.work import Layout as Processes
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config

CONFIG = load_config("paper-7b")
NODES = upstream(targets("full-pipeline", CONFIG))
DURATIONS = st.lists(st.floats(0.1, 100), min_size=len(NODES), max_size=len(NODES))


@settings(max_examples=50, deadline=None)
@given(DURATIONS, st.integers(1, 40))
def test_a_course_is_between_what_must_be_and_grahams_bound(
    durations: list[float], machines: int
) -> None:
    """Graham 1966: list scheduling takes less than work / m + (1 - 1/m) of the longest way."""
    seconds = dict(zip((node.key for node in NODES), durations, strict=True))
    course = simulate(NODES, Layout(dict.fromkeys(seconds, 1), seconds), machines)
    least = max(course.longest_way, sum(durations) / machines)
    bound = sum(durations) / machines + (1 - 1 / machines) * course.longest_way
    assert least - 1e-6 <= course.seconds <= bound + 1e-6
    assert course.machine_seconds == pytest.approx(sum(durations))


def test_the_longest_chain_is_one_of_nodes_that_read_each_other() -> None:
    seconds = {node.key: 1.0 + number for number, node in enumerate(NODES)}
    layout = Layout(dict.fromkeys(seconds, 1), seconds)
    chain = longest_chain(NODES, layout)
    for before, after in itertools.pairwise(chain):
        assert before.key in {parent.key for parent in after.inputs.values()}
    way = simulate(NODES, layout, 1).longest_way
    assert sum(seconds[node.key] for node in chain) == pytest.approx(way)


def test_more_machines_never_make_the_chosen_course_longer() -> None:
    plan = Plan(Costs(CONFIG, NODES), NODES)
    hours = [plan.best(machines)[2].seconds for machines in (2, 4, 16)]
    assert hours == sorted(hours, reverse=True)


def test_drawing_takes_at_least_as_long_as_its_longest_text() -> None:
    node = next(node for node in NODES if node.stage.name == "trace-generation")
    shape = Shapes(None).of(node.inputs["teacher"])
    assert shape is not None
    layout = Processes(CONFIG.resources.of("trace-generation"), 1, half=True)
    drawn = Drawn(1000, 600, 3000, 16384)
    times = [drawing_s(shape, layout, drawn, count) for count in (1, 64, 256, 1024)]
    assert times == sorted(times)
    assert times[3] < 4 * times[2], "a full batch is refilled while the long ones go on"
    lengths = lengths_of(drawn, 4096)
    assert lengths.max() <= drawn.limit
    assert lengths.mean() == pytest.approx(drawn.tokens, rel=0.05)
