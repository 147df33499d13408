"""Which explanations a student was trained on, as far as the store says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlt_core.data.trace_selection import choose, random_number
from rlt_core.store import Manifest


@dataclass(frozen=True)
class Learned:
    """The explanations that a student was trained on."""

    traces: str
    """Key of the artifact that has them."""
    scores: str | None
    """Key of the scores that rank or show them; None: nothing scored them."""
    names: frozenset[str] | None
    """Their ids; None: the store does not say which they are."""
    count: int | None
    """Their number; None: it is not known, either."""
    too_long: int
    """How many of them were left out, since they made rows longer than the student's."""


def chosen(
    one: Manifest, question_of: Mapping[str, str], ranks: Mapping[str, int] | None = None
) -> frozenset[str] | None:
    """Return the ids of the traces that the student-sft `one` chose among those with a question
    (and a rank, if it chose by rank); None if they are not known: it was trained on another number
    than the store has, or not on the first choice.

    The best that fits is known if the best of every question did. Sets with as many tokens as each
    other are cut in an order that is known, to a number that the student's metrics have.
    """
    config, told = one.config, one.metrics.get("traces")
    fits, cut, seed = config.get("fits"), config.get("token_matched"), config["seed"]
    rank = config.get("rank") or 1
    names: Iterable[str] = question_of
    if ranks is not None:
        names = [name for name, place in ranks.items() if place == rank]
    asked = {question_of[name] for name in (question_of if fits or cut else names)}
    keep = set(choose(sorted(asked), config.get("n_questions"), one.seed or 0))
    found = [name for name in names if question_of[name] in keep]
    if cut and told is not None:  # as `match_tokens` does
        found.sort(key=lambda n: (random_number("token-matched", seed, question_of[n]), n))
        found = found[len(found) - int(told) :]
    if not found or (fits and one.metrics.get("not_first_choice") != 0):
        return None
    is_known = told == len(found) or (told is None and not (fits or cut))
    return frozenset(found) if is_known else None
