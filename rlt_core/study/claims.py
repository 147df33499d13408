"""A study file (TOML): claims, the training seeds that test them, and how they are tested.

All sizes are fractions of 1, as in tables: a margin of 0.05 is five points.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from rlt_core.config import Fraction, Frozen, RankedSet
from rlt_core.errors import UserError
from rlt_core.experiments import EXPERIMENTS
from rlt_core.overrides import nearest, parse_set

Text = Annotated[str, Field(min_length=1)]
CLAIM_SEEDS = 10
"""Fewest seeds of a study that is no pilot."""


class _Claim(Frozen):
    name: Text
    """Short and unique."""
    statement: Text
    """The claim in words."""
    experiment: Text
    """Experiment that is run for it."""
    task: Text
    """Evaluation task that decides."""
    primary: bool = False
    """Whether this is the one claim that is tested on its own, outside Holm's family."""

    @property
    def models(self) -> list[tuple[str, str]]:
        """(field, variant of an evaluation) of each model that the claim names."""
        given = {field: getattr(self, field, ()) for field in ("ours", "theirs", "base")}
        return [
            (field, variant)
            for field, value in given.items()
            for variant in ((value,) if isinstance(value, str) else value)
        ]

    @field_validator("experiment")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in EXPERIMENTS:
            raise ValueError(f"there is no experiment {value!r}; {nearest(value, EXPERIMENTS)}")
        return value

    @model_validator(mode="after")
    def _different(self) -> _Claim:
        fields = " and ".join(dict.fromkeys(field for field, _ in self.models))
        if len({variant for _, variant in self.models}) != len(self.models):
            raise ValueError(f"{fields} are all different variants")
        return self


class DifferenceClaim(_Claim):
    """ours - theirs > margin; with several baselines, ours beats every one."""

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


class RatioClaim(_Claim):
    """(ours - base) / (theirs - base) is more than the threshold."""

    kind: Literal["ratio"]
    ours: Text
    theirs: Text
    base: Text
    threshold: float = Field(gt=0)
    """Share of theirs' gain that ours recovers."""


class CorrelationClaim(_Claim):
    """The better a trace's rank, the better its student: Pearson's r over the set's ranks > 0."""

    kind: Literal["correlation"]
    set: RankedSet
    """Ranked set: how the traces of a question were ranked."""


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
        if self.primary:
            raise ValueError("a negative control is not the primary claim")
        return self


Claim = DifferenceClaim | RatioClaim | CorrelationClaim | EquivalenceClaim
KINDS: dict[str, type[_Claim]] = {
    "difference": DifferenceClaim,
    "ratio": RatioClaim,
    "correlation": CorrelationClaim,
    "equivalence": EquivalenceClaim,
}


class Regime(Frozen):
    """A setting that was tried on development seeds."""

    what: Text
    seeds: tuple[int, ...]
    result: Text


class Study(Frozen):
    """Claims, and the seeds that decide them."""

    name: Text
    profile: Text
    seeds: tuple[int, ...] = Field(min_length=2)
    """Training seeds; untouched, so that nothing was chosen on them."""
    set: tuple[Text, ...] = ()
    """`--set` lines."""
    level: Fraction = Field(default=0.05, gt=0, lt=1)
    """Significance level of the whole family of claims."""
    regimes: tuple[Regime, ...] = ()
    """Settings that were tried before, on other seeds."""
    claims: tuple[Annotated[Claim, Field(discriminator="kind")], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: they are all different")
        if seen := sorted(set(self.seeds) & {seed for one in self.regimes for seed in one.seeds}):
            raise ValueError(f"seeds: {seen} were used in regimes; claims need untouched ones")
        names = [claim.name for claim in self.claims]
        if twice := sorted({name for name in names if names.count(name) > 1}):
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
        """The experiments that the claims name, each once, in their order."""
        return list(dict.fromkeys(claim.experiment for claim in self.claims))


def load_study(path: Path) -> Study:
    """Read a study file. Raises UserError naming the file, the claim and the field."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        return Study.model_validate(given)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        # A list with a wrong entry is reported as too short as well.
        errors = [one for one in error.errors() if one["type"] != "too_short"] or error.errors()
        messages = dict.fromkeys(_message(given, one) for one in errors)
        raise UserError(f"{path}: {'; '.join(messages)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _message(given: dict[str, Any], error: ErrorDetails) -> str:
    """`claim 'rlt-beats-dataset': theirs: Field required`."""
    location, where = list(error["loc"]), ""
    shape: type[BaseModel] = Regime if location[:1] == ["regimes"] else Study
    if location[:1] == ["claims"] and len(location) > 1:
        number, *kind = location[1:]
        claim = given["claims"][number]
        name = claim.get("name") if isinstance(claim, dict) else None
        where = f"claim {name!r}: " if name else f"claim number {int(number) + 1}: "
        location, shape = kind[1:], KINDS.get(str(kind[0]), _Claim) if kind else _Claim
    where += ".".join(map(str, location)) + ": " if location else ""
    what = error["msg"].removeprefix("Value error, ")
    if error["type"].startswith("union_tag"):
        what = f"kind: it is one of {', '.join(KINDS)}"
    elif error["type"] == "extra_forbidden":
        what = f"there is no such field; {nearest(str(location[-1]), shape.model_fields)}"
    return where + what
