"""One question's explanations side by side: ranks, parts of the reward, and why one is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rlt_core.config import RewardSpec
from rlt_core.config.reward import KLEstimator, Reduction
from rlt_core.errors import UserError
from rlt_core.explain import Explained, ExplainedPart, Row, Token, replayed_row, take_apart
from rlt_core.explorer.heatmap import percent
from rlt_core.explorer.queries import Library
from rlt_core.printable import printable
from rlt_core.reward.replay import changed, spec_of
from rlt_core.store import Manifest

CHOICES = {
    "kl": get_args(KLEstimator),
    **dict.fromkeys(
        ("solution_reduction", "solution_extreme", "think_reduction", "think_extreme"),
        get_args(Reduction),
    ),
}
REPLAYED = ("alpha", "kl_weight", *CHOICES)
"""Fields of the reward that a reader can change; of those that are no numbers the values."""

PAIRS = 5
"""Pairs that a page proposes."""
DATASET = "dataset"
"""Name of the data set's own trace of a question."""

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """An explanation as a page shows it."""

    row: Row
    """Of the index, with its `place` on the page and `name`, the teacher's."""
    found: Explained
    spec: RewardSpec | None
    """None, like the tokens: there are no log-probs."""
    text: str
    """The explanation's, for one without tokens."""

    @property
    def title(self) -> str:
        """Return the rank on the page, if there is one, and the teacher."""
        place, name = self.row["place"], str(self.row["name"])
        return f"rank {place} ({name})" if place else name


def name_of(row: Row) -> str:
    """Return a row's name in the page's address."""
    return f"{row['run']}.{row['trace_id']}"


def compared(
    library: Library, rows: Sequence[Row], changes: Changes, a: str | None, b: str | None
) -> Row:
    """Rank a question's rows of the index under changes of the reward and compare two of them, `a`
    and `b` (RUN.TRACE_ID), by default the best and the worst of typical length, or of all.

    `question`: None if its questions have left the store; `title`: its text, or its id; `rows`, the
    best first, each with `place`, the place as scored, `was`, and `name`, and those `scored`;
    `sides`: two, or the only one; `why`: sentences; `pairs` to look at.
    """
    asked, name = library.manifests[rows[0]["run"]].inputs.get("questions"), rows[0]["question_id"]
    question = library.find("questions", asked.key, name) if asked else None
    found = ranked(library, rows, changes)
    unscored = library.unscored(name)
    if asked and question and question["trace"]:
        unscored.append({"run": asked.key, "trace_id": DATASET, "name": "the data set's own trace"})
    for row in unscored:
        row.setdefault("name", library.name_of(row["run"]))
        found.append(dict.fromkeys(found[0]) | row | {"badges": ["not scored"]})
    by_name = {name_of(row): row for row in found}
    scored = [row for row in found if row["reward"] is not None]
    typical = [row for row in scored if row["typical"]]
    default = typical if len(typical) > 1 else scored or found
    one, other = by_name.get(a or "", default[0]), by_name.get(b or "", default[-1])
    shown = [one] if one is other else [one, other]
    sides = [side(library, row, changes, question) for row in shown]
    return {
        "question": question, "title": question["question"] if question else name, "rows": found,
        "scored": scored, "sides": sides, "why": why(*sides) if len(sides) == 2 else [],
        "pairs": _pairs(found, scored, default) if scored else [],
    }  # fmt: skip


def _pairs(
    rows: Sequence[Row], scored: Sequence[Row], default: Sequence[Row]
) -> list[tuple[str, str, str]]:
    """Return pairs as a title and two names: best and worst (of typical length, of all), the best
    of two teachers, the best and what was not scored."""
    best: dict[str, Row] = {}
    for row in rows:
        best.setdefault(row["name"], row)
    first, *others = best.values()
    found = [("best and worst", scored[0], scored[-1])]
    if (default[0], default[-1]) != found[0][1:]:
        found.insert(0, ("of typical length", default[0], default[-1]))
    found += [(f"best of {first['name']} and of {row['name']}", first, row) for row in others]
    return [(title, name_of(a), name_of(b)) for title, a, b in found[:PAIRS] if a is not b]


def spec_under(library: Library, run: str, changes: Changes) -> RewardSpec | None:
    """Return the spec of an artifact's rewards with these changes; None if it cannot be replayed:
    imported rewards, or a user's own function."""
    config = library.manifests[run].config.get("reward")
    if config is None or "function" in config:
        return None
    return changed(spec_of(library.manifests[run]), changes)


def ranked(library: Library, rows: Sequence[Row], changes: Changes) -> list[Row]:
    """Return a question's rows by reward under the changes, with `place`, the former place `was`
    and the teacher's `name`. Raises UserError if a row lacks what the changes need."""
    found = [
        row | {"was": place, "name": library.name_of(row["teacher"] or "unknown")}
        for place, row in enumerate(rows, 1)
    ]
    if changes:
        for run in {row["run"] for row in found}:
            spec = spec_under(library, run, changes)
            full = library.read("scores", run, "question_id", found[0]["question_id"])
            by_id = {row["trace_id"]: row for row in full}
            for row in found:
                if row["run"] == run and spec:
                    new = _replayed(by_id[row["trace_id"]], spec)
                    row |= {name: new[name] for name in row.keys() & new.keys()}
        found.sort(key=lambda row: (row["reward"] is None, -(row["reward"] or 0.0)))
    return [
        row | {"place": None if row["reward"] is None else place}
        for place, row in enumerate(found, 1)
    ]


def _replayed(row: Row, spec: RewardSpec) -> Row:
    try:
        return replayed_row(row, spec)
    except ValueError as error:
        raise UserError(f"trace {row['trace_id']} cannot be replayed: {error}") from None


def side(library: Library, row: Row, changes: Changes, question: Row | None = None) -> Side:
    """Take one row apart; `question` has the text of the data set's own trace."""
    run, spec = row["run"], spec_under(library, row["run"], changes)
    full = library.find("scores", run, row["trace_id"]) or row
    if changes and spec:
        full = _replayed(full, spec)
    explained = Explained(library.manifests[run], full)
    found = take_apart(library.store, library.find, explained, spec)
    if found.explanation:
        return Side(row, found, spec, "")
    if row["trace_id"] == DATASET and question:
        return Side(row, found, None, question["trace"])
    trace = library.find("traces", row["traces_run"] or run, row["trace_id"])
    return Side(row, found, spec, trace["text"] if trace else "")


def completion_side(library: Library, one: Manifest, row: Row) -> Side:
    """Take apart a row of `rollouts`, a completion of a GRPO step."""

    def find(table: str, run: str, name: str) -> Row | None:
        return row if table == "traces" else library.find(table, run, name)

    manifest = one.model_copy(update={"inputs": one.inputs | {"traces": one.ref}})
    found = take_apart(library.store, find, Explained(manifest, row))
    return Side(row | {"name": f"step {row['step']}"}, found, None, row["text"])


# ---------------------------------------------------------------- why
def differences(a: Side, b: Side) -> list[tuple[ExplainedPart, ExplainedPart, float]]:
    """Return the parts of two rewards, and what each adds to the difference of a and b."""
    parts = zip(a.found.parts, b.found.parts, strict=False)
    return [(one, other, one.contribution - other.contribution) for one, other in parts]


def why(a: Side, b: Side) -> list[str]:
    """Return sentences that say why `a` has the larger reward: the part that differs most, and the
    tokens that set the extremes. `a` and `b` change places if `b` has."""
    rewards = a.row["reward"], b.row["reward"]
    if None in rewards:
        without = a if rewards[0] is None else b
        return [f"{_capital(without.title)} has no reward, so rewards cannot be compared."]
    if rewards[0] < rewards[1]:
        a, b = b, a
    gap = abs(rewards[0] - rewards[1])
    if gap == 0:
        return [f"{_capital(a.title)} and {b.title} have the same reward."]
    lead = f"{_capital(a.title)} beats {b.title} by {gap:.3g}"
    parts = differences(a, b)
    replayable = a.spec and b.spec  # a user's own function is no sum of these parts
    if len(a.found.parts) != len(b.found.parts) or not parts or not replayable:
        return [f"{lead}; the parts of the rewards are not known."]
    part, other, most = max(parts, key=lambda each: each[2])
    one, two = (f"rank {each.row['place']}" for each in (a, b))
    much = "nearly all of it" if 0.9 <= most / gap <= 1.1 else f"{most:+.3g}"
    if most < 0.9 * gap:
        much += " of it"
    sentences = [f"{lead}: {much} because {_reason(part, other, two)}."]
    if (worst := a.found.worst_solution) and (other_worst := b.found.worst_solution):
        sentences.append(
            f"The solution's least likely token is {_quoted(worst)} ({percent(worst.student)}) "
            f"after {one} and {_quoted(other_worst)} ({percent(other_worst.student)}) after {two}."
        )
    if (first := a.found.most_surprising) and (second := b.found.most_surprising):
        sentences.append(
            f"The token that surprises the student most is {_quoted(first)} (KL {first.kl:.2f}) in "
            f"{one} and {_quoted(second)} (KL {second.kl:.2f}) in {two}."
        )
    return sentences


def _reason(part: ExplainedPart, other: ExplainedPart, loser: str) -> str:
    kind = part.name.partition(" ")[0]
    if part.name == "penalty":
        return f"{loser} has no end-of-explanation tag"
    if part.name == "mean log p(solution)":
        return (
            f"after reading it the student gives the solution's tokens a probability of "
            f"{percent(part.value)} on average, and after {loser} of {percent(other.value)}"
        )
    if "log p(solution)" in part.name:
        both = f"{part.value:.3g}, and {other.value:.3g} after {loser}"
        return f"the solution's {kind} log-prob is {both}"
    compared = "less" if part.value < other.value else "more"
    return (
        f"its words surprise the student {compared}: their {kind} KL is {part.value:.3g}, and "
        f"{other.value:.3g} in {loser}"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _quoted(token: Token) -> str:
    text = printable(token.text)
    return f"“{text.strip() or repr(text)[1:-1]}”"
