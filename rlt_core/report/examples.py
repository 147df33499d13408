"""Sample texts: explanations of one question with their tokens."""

from urllib.parse import quote

from rlt_core.explain import Explained, take_apart
from rlt_core.report.inputs import Part, Parts, Row
from rlt_core.report.trace_sets import AFTER, BEFORE, NAMES
from rlt_core.store import Store

REWARDS = ("reward", "r_ss", "r_kl", "penalty")


def explanations(parts: Parts, store: Store) -> Row | None:
    """The first question by id, not picked, and the best of its explanations, the one in the middle
    and the worst: of a teacher before and after RL where there are both. `page`: path of a page of
    `rlt traces`."""
    scored = {variant: each[0] for variant, each in parts.by_variant("trace-scoring").items()}
    chosen = [scored[name] for name in (BEFORE, AFTER) if name in scored] or [*scored.values()][:1]
    rows = [
        (part, row)
        for part in chosen
        for row in part.rows("scores", "trace_id", "question_id", "closed", *REWARDS)
        if row["reward"] is not None
    ]
    asked = [{row["question_id"] for part, row in rows if part is each} for each in chosen]
    question = min(set.intersection(*asked), default=None) if asked else None
    found = chosen[0].questions().get(question) if question else None
    if found is None:
        return None
    ranked = [each for each in rows if each[1]["question_id"] == question]
    ranked.sort(key=lambda each: -each[1]["reward"])
    shown = [
        _explanation(store, *ranked[place]) | {"rank": place + 1}
        for place in sorted({0, len(ranked) // 2, len(ranked) - 1})
    ]
    page = f"question/{quote(str(question), safe='')}"
    return found | {"page": page, "shown": shown, "count": len(ranked)}


def _explanation(store: Store, part: Part, row: Row) -> Row:
    """One explanation, and the solution after it, as far as the student's log-probs go."""

    def find(table: str, run: str, name: str) -> Row | None:
        return part.made[run].row(table, name) if run in part.made else None

    full = find("scores", part.key, row["trace_id"])
    trace = find("traces", part.manifest.inputs["traces"].key, row["trace_id"])
    return row | {
        "found": take_apart(store, find, Explained(part.manifest, full or row)),
        "teacher": NAMES.get(part.variant, part.variant),
        "text": trace["text"] if trace else "",
        "page": f"trace/{part.key}/{quote(row['trace_id'], safe='')}",
    }
