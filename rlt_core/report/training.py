"""Training: reward and loss, step by step; what to look at before the numbers are believed."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rlt_core.report.inputs import Parts, Row
from rlt_core.report.scores import RANKED
from rlt_core.report.terminal import MANY_UNCLOSED
from rlt_core.report.trace_sets import known_mean
from rlt_core.reward.diagnostics import (
    CLIPPED_ALARM,
    COMPRESSION_ALARM,
    COPIED_ALARM,
    NGRAM_TOKENS,
    explanation_alarms,
)

WINDOW_STEPS = 10
"""Steps at either end of training that a curve's table takes the mean of."""
ALARMS = {
    "alarm_zero_variance": "in its last steps no group had two different rewards: nothing is "
    "learned any more",
    "alarm_reward_falling": "the reward fell during training, by more than its spread inside a "
    "group at the start",
}
"""Metric of a training artifact -> what it means when it is 1."""
DIAGNOSTICS = ("copied", "compression", "clipped")
"""Means for which the diagnostics raise alarms; for training, over the last `WINDOW_STEPS`."""
PLOTTED = ("reward", "r_ss", "r_kl", "correct", "reference_kl", "completion_tokens", "loss")
"""Columns of a step that figures have."""
OTHERS = (
    "reference_kl", "grad_norm", "zero_std_groups", "unclosed", "tokens_per_s", *DIAGNOSTICS,
)  # fmt: skip


def curves(parts: Parts) -> list[Row]:
    """Every training run with steps, except those of rank students: its `quantity`, the `reward` of
    GRPO or the `loss` of SFT; by step the `PLOTTED` columns that have any value; means over the
    first and last `WINDOW_STEPS`, of the `OTHERS` over the last."""
    found = []
    for part in parts.all:
        if RANKED.fullmatch(part.variant) or "train_steps" not in part.manifest.tables:
            continue
        rows = sorted(part.rows("train_steps"), key=lambda row: row["step"])
        if not rows:
            continue
        columns = {name: [row[name] for row in rows] for name in PLOTTED}
        quantity = "reward" if rows[0]["reward"] is not None else "loss"
        first, last = rows[:WINDOW_STEPS], rows[-WINDOW_STEPS:]
        found.append(
            {
                "name": part.name, "label": part.manifest.label, "seed": part.seed,
                "quantity": quantity, "steps": [row["step"] for row in rows],
                "columns": {n: each for n, each in columns.items() if set(each) != {None}},
                "first": sum(row[quantity] for row in first) / len(first),
                "last": sum(row[quantity] for row in last) / len(last),
                "last_row": {name: known_mean([row[name] for row in last]) for name in OTHERS},
                "seconds": sum(row["seconds"] or 0.0 for row in rows),
            }
        )  # fmt: skip
    return found


def alarms(parts: Parts, trained: Sequence[Row], traces: Sequence[Row]) -> list[str]:
    """Return one line for each problem; `trained`: `curves`; `traces`: `trace_sets`."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, text in _alarms(parts, trained, traces):
        names[text].append(name)
    return [
        f"{', '.join(each[:3])}{f' and {len(each) - 3} more' if len(each) > 3 else ''}: {text}"
        for text, each in names.items()
    ]


def _alarms(
    parts: Parts, trained: Sequence[Row], traces: Sequence[Row]
) -> Iterator[tuple[str, str]]:
    """Yield artifacts and what is wrong with them."""
    for part in parts.all:
        for metric, value in part.manifest.metrics.items():
            if metric in ALARMS and value:
                yield part.name, ALARMS[metric]
            if metric.endswith("/ungraded") and value:
                of_task = f"{value:.0f} completions of {metric.removesuffix('/ungraded')}"
                yield part.name, f"{of_task} could not be graded and are in no score"
    for curve in trained:
        name, last, texts = curve["name"], curve["last_row"], "the completions of its last steps"
        if not all(map(math.isfinite, curve["columns"][curve["quantity"]])):
            yield name, f"its {curve['quantity']} was not finite"
        yield from _diagnosed(name, last, texts)
    for made in traces:
        if too_long := made["too_long"]:
            yield made["name"], f"{too_long} of {made['traces']} traces were too long to score"
        yield from _diagnosed(made["name"], made, "the traces")


def _diagnosed(
    name: str, means: Mapping[str, float | None], texts: str
) -> Iterator[tuple[str, str]]:
    """Yield the alarms of the diagnostics about these texts."""
    copied, compression, clipped = (means[one] for one in DIAGNOSTICS)
    said = {
        "alarm_copied": f"{100 * (copied or 0):.0f}% of the solutions' runs of {NGRAM_TOKENS} "
        f"tokens are also in {texts} (alarm above {100 * COPIED_ALARM:g}%)",
        "alarm_repetition": f"{texts} compress {compression or 0:.1f} times, as repetition does "
        f"(alarm above {COMPRESSION_ALARM:g})",
        "alarm_over_length": f"{100 * (clipped or 0):.0f}% of {texts} are cut at the token limit "
        f"(alarm above {100 * CLIPPED_ALARM:g}%)",
    }
    raised = explanation_alarms(copied, compression, clipped)
    yield from ((name, text) for alarm, text in said.items() if raised[alarm])
    if (unclosed := means["unclosed"]) is not None and unclosed > MANY_UNCLOSED:
        yield name, f"{100 * unclosed:.0f}% of {texts} have no end"
