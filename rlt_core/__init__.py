"""The method of Reinforcement-Learned Teachers. Never imports Prefect."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlt_core.explanations import score_explanations

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what computes when it is first used."""
    if name == "score_explanations":
        from rlt_core.explanations import score_explanations

        return score_explanations
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
