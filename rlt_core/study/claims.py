"""A study file: which claims, on which seeds, tested how (TOML).

All sizes are fractions of 1, as in tables: a margin of 0.05 is five points.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from rlt_core.config import Config, Fraction, Frozen, RankedSet
from rlt_core.errors import UserError
from rlt_core.experiments import EXPERIMENTS
from rlt_core.overrides import load_config, parse_set

Text = Annotated[str, Field(min_length=1)]


class _Claim(Frozen):
    name: Text
    """Short and unique."""
    statement: Text
    """What is claimed, in words."""
    experiment: Text
    """Whose graph is run for it."""
    task: Text
    """Which evaluation task decides."""
    primary: bool = False
    """Whether this is the one claim that is tested on its own, outside Holm's family."""

    @field_validator("experiment")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in EXPERIMENTS:
            raise ValueError(f"there is no experiment {value!r}; {_nearest(value, EXPERIMENTS)}")
        return value


class DifferenceClaim(_Claim):
    """ours - theirs > margin; against several, ours beats every one."""

    kind: Literal["difference"]
    ours: Text
    """Variant of the evaluation."""
    theirs: tuple[Text, ...] = Field(min_length=1)
    """One variant, or a list."""
    margin: float = Field(default=0.0, ge=-1, le=1)
    """Fraction of 1 by which ours is better."""

    @field_validator("theirs", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _different(self) -> DifferenceClaim:
        if len({self.ours, *self.theirs}) != 1 + len(self.theirs):
            raise ValueError("ours and theirs are all different variants")
        return self


class RatioClaim(_Claim):
    """(ours - base) / (theirs - base) is more than the threshold."""

    kind: Literal["ratio"]
    ours: Text
    theirs: Text
    base: Text
    threshold: float = Field(gt=0)
    """Share of theirs' gain that ours recovers."""

    @model_validator(mode="after")
    def _different(self) -> RatioClaim:
        if len({self.ours, self.theirs, self.base}) != 3:
            raise ValueError("ours, theirs and base are three different variants")
        return self


class CorrelationClaim(_Claim):
    """The better a trace's rank, the better its student: Pearson of the set is more than 0."""

    kind: Literal["correlation"]
    set: RankedSet
    """What the traces of a question were ranked by."""


class EquivalenceClaim(_Claim):
    """A negative control: -margin < ours - theirs < margin."""

    kind: Literal["equivalence"]
    ours: Text
    theirs: Text
    margin: float = Field(gt=0, le=1)
    """Fraction of 1; the largest difference that does not matter."""
    set: RankedSet | None = None
    """Ranked set whose students are all compared beside it: an F test of rank x seed."""

    @model_validator(mode="after")
    def _tested_elsewhere(self) -> EquivalenceClaim:
        if self.ours == self.theirs:
            raise ValueError("ours and theirs are two different variants")
        if self.primary:
            raise ValueError("a negative control is not the primary claim")
        return self


Claim = DifferenceClaim | RatioClaim | CorrelationClaim | EquivalenceClaim
CLAIM_SEEDS = 10
"""Seeds that a claim takes; a study of fewer is a pilot."""
KINDS: dict[str, type[_Claim]] = {
    "difference": DifferenceClaim,
    "ratio": RatioClaim,
    "correlation": CorrelationClaim,
    "equivalence": EquivalenceClaim,
}


class Regime(Frozen):
    """Something that was tried on development seeds."""

    what: Text
    seeds: tuple[int, ...]
    result: Text


class Study(Frozen):
    """Claims, and the seeds on which they stand or fall."""

    name: Text
    profile: Text
    seeds: tuple[int, ...] = Field(min_length=2)
    """Training seeds; untouched, so that nothing was chosen on them."""
    set: tuple[Text, ...] = ()
    """`--set` lines."""
    level: Fraction = Field(default=0.05, gt=0, lt=1)
    """Of the whole family of claims."""
    regimes: tuple[Regime, ...] = ()
    """What was tried before, on other seeds."""
    claims: tuple[Annotated[Claim, Field(discriminator="kind")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: they are all different")
        seen = sorted(set(self.seeds) & {seed for one in self.regimes for seed in one.seeds})
        if seen:
            raise ValueError(f"seeds: {seen} were used in regimes; claims need untouched ones")
        names = [claim.name for claim in self.claims]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"claims: two are called {twice[0]!r}")
        if sum(claim.primary for claim in self.claims) > 1:
            raise ValueError("claims: more than one is primary")
        for line in self.set:
            if parse_set(line)[0] in ("seeds", "profile"):
                raise ValueError(f"set: {line!r} belongs in the study's own fields")
        return self

    @property
    def pilot(self) -> bool:
        """Whether it has too few seeds for claims."""
        return len(self.seeds) < CLAIM_SEEDS

    @property
    def overrides(self) -> tuple[str, ...]:
        """`set` and the seeds, as `--set` takes them."""
        return (*self.set, f"seeds={json.dumps(list(self.seeds))}")

    @property
    def experiments(self) -> list[str]:
        """Those that the claims name, each once, in their order."""
        return list(dict.fromkeys(claim.experiment for claim in self.claims))

    def config(self) -> Config:
        """The whole config. Raises UserError."""
        return load_config(self.profile, self.overrides)


# ---------------------------------------------------------------- reading
def load_study(path: Path) -> Study:
    """A study file. Raises UserError naming the file, the claim and the field."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    try:
        return Study.model_validate(given)
    except ValidationError as error:
        messages = (_message(given, one) for one in _causes(error.errors()))
        raise UserError(f"{path}: {'; '.join(dict.fromkeys(messages))}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without lists that are too short because an entry of theirs is wrong."""
    return [
        one
        for one in errors
        if one["type"] != "too_short"
        or not any(
            other is not one and other["loc"][: len(one["loc"])] == one["loc"] for other in errors
        )
    ]


def _message(given: dict[str, Any], error: ErrorDetails) -> str:
    where, known = _where(given, error["loc"])
    what = error["msg"].removeprefix("Value error, ")
    match error["type"]:
        case "too_short":
            what = f"it needs {error['ctx']['min_length']} or more entries"
        case "union_tag_not_found":
            what = f"kind: it is missing; one of {', '.join(KINDS)}"
        case "union_tag_invalid":
            what = f"kind: it is one of {', '.join(KINDS)}"
        case "missing":
            what = "it is missing"
        case "extra_forbidden":
            what = f"there is no such field; {_nearest(str(error['loc'][-1]), known)}"
    return f"{where}: {what}" if where else what


def _where(given: dict[str, Any], location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """`claim 'rlt-beats-dataset': theirs`, and the fields that are known there."""
    if location[:1] != ("claims",) or len(location) < 2:
        known = Regime if location[:1] == ("regimes",) and len(location) > 1 else Study
        return ".".join(map(str, location)), list(known.model_fields)
    number, rest = int(location[1]), list(location[2:])
    claim = given["claims"][number]
    name = claim.get("name") if isinstance(claim, dict) else None
    title = f"claim {name!r}" if isinstance(name, str) and name else f"claim number {number + 1}"
    kind = str(rest.pop(0)) if rest else ""
    fields = list(KINDS[kind].model_fields) if kind in KINDS else []
    return ": ".join([title, ".".join(map(str, rest))] if rest else [title]), fields


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"


def variants(claim: Claim) -> Iterator[tuple[str, str]]:
    """(field, variant of an evaluation) of each that a claim names, beside the students of every
    rank of its set."""
    match claim:
        case DifferenceClaim():
            yield "ours", claim.ours
            yield from (("theirs", name) for name in claim.theirs)
        case RatioClaim():
            yield from (("ours", claim.ours), ("theirs", claim.theirs), ("base", claim.base))
        case EquivalenceClaim():
            yield from (("ours", claim.ours), ("theirs", claim.theirs))
