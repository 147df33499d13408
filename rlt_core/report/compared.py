"""Two trace sets on the same questions: each part of the reward in both.

Shapes: S seeds of the teacher that scored, Q questions.
"""

from collections import defaultdict

import numpy as np

from rlt_core.evaluation.comparisons import cluster_bootstrap, permutation_p
from rlt_core.evaluation.crossed import Floats, crossed_mean
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.trace_sets import known_mean

PARTS = (
    "reward", "r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max", "penalty",
    "think_tokens", "think_mean", "rank_surprisal", "copied", "compression", "doubt",
)  # fmt: skip
"""The reward, its parts, and the diagnostics beside it."""


def compared(names: tuple[str, str], parts: Parts) -> Row:
    """Compare two variants of trace-scoring on the questions for which both have a scored trace
    under every seed.

    `estimators`: the KL estimator of each set's rewards, with its reason where the traces are
    off-policy. `lines`: one row per part of the reward that both have: `means` of both, and second
    minus first for these seeds (`checkpoint`), with random training seeds too (`method`, None for
    one seed), and by a paired permutation test of the questions (`p`). `wins`: questions on
    which the second set has the better reward. `by_question`: rows of `compared.csv`.

    Raises ValueError if a variant is not among the inputs, if their seeds differ or if they share
    no question.
    """
    found = parts.by_variant("trace-scoring")
    for name in names:
        if name not in found:
            raise ValueError(f"no trace-scoring[{name}] to compare")
    first, second = (found[name] for name in names)
    if [part.seed for part in first] != [part.seed for part in second]:
        raise ValueError(f"the traces of {names[0]} and {names[1]} were scored with other seeds")
    means = [[_means(part) for part in side] for side in (first, second)]
    common = sorted(set.intersection(*(set(each) for side in means for each in side)))
    if not common:
        raise ValueError(f"{names[0]} and {names[1]} share no question with scored traces")
    values = {
        part: [
            np.array([[each[question][part] for question in common] for each in side], float)
            for side in means
        ]
        for part in PARTS
    }
    gain_Q = np.diff([side_SQ.mean(axis=0) for side_SQ in values["reward"]], axis=0)[0]
    columns = {
        f"{part}[{name}]": side_SQ.mean(axis=0)
        for part, sides in values.items()
        for name, side_SQ in zip(names, sides, strict=True)
    }
    return {
        "names": names,
        "estimators": (_estimator(first[0]), _estimator(second[0])),
        "questions": common,
        "lines": [line for part in PARTS if (line := _part_line(part, *values[part]))],
        "wins": int((gain_Q > 0).sum()),
        "by_question": [
            {"question_id": question, "reward_difference": float(gain_Q[q])}
            | {
                name: None if np.isnan(each[q]) else float(each[q])
                for name, each in columns.items()
            }
            for q, question in enumerate(common)
        ],
        "seeds": len(first),
    }


def _estimator(part: Part) -> str:
    config = part.manifest.config
    reason = config.get("off_policy", "")
    return config["reward"]["kl"] + (f", off-policy: {reason}" if reason else "")


def _means(part: Part) -> dict[str, dict[str, float | None]]:
    """Question -> part of the reward -> mean over its scored traces that have it."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in part.rows("scores", "question_id", "status", *PARTS):
        if row["status"] == "scored":
            groups[row["question_id"]].append(row)
    return {
        question: {name: known_mean([row[name] for row in rows]) for name in PARTS}
        for question, rows in groups.items()
    }


def _part_line(part: str, first_SQ: Floats, second_SQ: Floats) -> Row | None:
    """None where no question has the part in both sets."""
    known_Q = ~(np.isnan(first_SQ) | np.isnan(second_SQ)).any(axis=0)
    if not known_Q.any():
        return None
    first, second = first_SQ[:, known_Q], second_SQ[:, known_Q]
    gain_Q = (second - first).mean(axis=0)
    return {
        "part": part,
        "means": (float(first.mean()), float(second.mean())),
        "checkpoint": cluster_bootstrap(gain_Q),
        "method": crossed_mean(second - first) if len(first) > 1 else None,
        "p": permutation_p(gain_Q),
    }
