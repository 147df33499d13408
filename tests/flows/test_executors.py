"""Runs that share a node: when the others are waited for."""

import pytest
from prefect.states import Completed, Failed, Pending, Running, Scheduled, State

from flows.executors import is_assembled


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([Running(), Scheduled()], False),
        ([Running(), Pending()], False),
        ([Running(), None], False),  # the server cannot be asked
        ([Running(), Running()], True),
        ([Running(), Completed()], True),
        ([Failed(), Scheduled()], True),  # else every other node of several machines waits, too
    ],
)
def test_a_machine_is_waited_for_until_another_has_failed(
    states: list[State | None], expected: bool
) -> None:
    assert is_assembled(states) is expected
