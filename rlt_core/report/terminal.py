"""What a terminal shows of one node. No numpy."""

from collections.abc import Sequence

from rlt_core.progress import Metrics
from rlt_core.store import Manifest, Store

MANY_UNCLOSED = 0.5
"""Share of completions without an end from which an alarm is raised."""
FACTS = {
    "train": "{:.0f} to train", "mean_reward": "reward {:.3g}", "correct": "{:.0%} correct",
    "scored": "{:.0f} scored", "traces": "{:.0f} traces", "mean_tokens": "{:.0f} tokens each",
    "slope_points": "{:+.2g} points a rank", "parameters": "{:.3g} parameters",
    "nodes": "of {:.0f} nodes", "tokens_per_s": "{:.0f} tokens/s",
}  # fmt: skip
"""The metrics that a line has room for, the most important ones first."""


def duration(seconds: float) -> str:
    """`1.7 s`, `85 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def alarms_of(metrics: Metrics) -> str:
    """The alarms in the metrics of running or finished work: `alarm: copied, over length`."""
    found = [
        name.removeprefix("alarm_").replace("_", " ")
        for name, value in metrics.items()
        if name.startswith("alarm_") and value
    ]
    if (unclosed := metrics.get("unclosed", 0)) > MANY_UNCLOSED:
        found.append(f"{unclosed:.0%} have no end")
    return f"alarm: {', '.join(found)}" if found else ""


def facts(metrics: Metrics, scores: Sequence[str] = ()) -> list[str]:
    """What matters most about running or finished work: scores, the reward or the loss from first
    to last, then `FACTS`."""
    found = list(scores)
    for name in ("reward", "loss"):
        if name in metrics:
            found.append(f"{name} {metrics[name]:.3g}")
        elif f"{name}_last" in metrics:
            found.append(f"{name} {metrics[f'{name}_first']:.3g} → {metrics[f'{name}_last']:.3g}")
    found += [form.format(metrics[name]) for name, form in FACTS.items() if name in metrics]
    return found or [f"{name} {value:.4g}" for name, value in metrics.items()]


def scores_of(manifest: Manifest, store: Store | None) -> list[str]:
    """Return an evaluation's scores in percent with their intervals: `test 33.8 [30.4, 37.2]`."""
    if manifest.stage != "evaluation" or store is None:
        return []
    from rlt_core.rows import read_rows

    names = ["task", "metric", "value", "low", "high"]
    rows = read_rows(store.intact(manifest, ".parquet"), "eval_scores", names)
    return [
        f"{row['task']} {100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in rows
        if row["metric"].startswith("avg@")
    ]
