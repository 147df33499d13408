"""One grader for all data sets that are prepared here: a process imports sympy only once."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from rlt_core.data import prepare
from rlt_core.grading import Grader


@pytest.fixture(autouse=True, scope="package")
def one_grader() -> Iterator[None]:
    with Grader() as grader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "Grader", lambda: nullcontext(grader))
        yield
