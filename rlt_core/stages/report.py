"""The report of a run."""

from rlt_core.config import Frozen
from rlt_core.stages.base import Stage


class TableRow(Frozen):
    """A row of an experiment's table."""

    name: str
    """As people call it: `RLT-7B`."""
    model: str
    """Variant of the evaluations that it shows."""
    paper: str | None = None
    """Row of the paper's table (`rlt_core.report.paper.NUMBERS`) that it repeats."""
    baseline: str | None = None
    """Model whose difference is shown; none for the baseline itself."""
    trained: bool = True
    """Whether this run trained it, so that other training seeds could have come."""
    missing: str | None = None
    """Why it did not run; then there is no evaluation of it."""


class ReportConfig(Frozen):
    """The report of a run."""

    profile: str
    title: str
    rows: tuple[TableRow, ...] = ()
    """Rows of the experiment's table, in its order; none: a report of all models."""
    primary: str | None = None
    """Model of the row whose difference was named as the primary contrast beforehand."""
    overlaps: tuple[tuple[str, str], ...] = ()
    """Pairs of models of whose solved problems the overlap is shown."""
    compared: tuple[str, str] | None = None
    """Two variants of trace-scoring whose traces are compared question by question."""


STAGE = Stage(
    "report",
    version=3,
    kind="report",
    config=ReportConfig,
    inputs=None,
)
