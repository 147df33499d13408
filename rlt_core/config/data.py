"""Questions to learn from and to be tested on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlt_core.config.base import Commit, Fraction, Frozen, Positive, Seed


class FieldMapping(Frozen):
    """Which column of the source holds what; `a.b` is the field b of the column a."""

    question: str = "question"
    """Column with the question."""
    solution: str = "solution"
    """Column with the solution."""
    trace: str | None = None
    """Column with the data set's own reasoning trace, if it has one."""
    answer: str | None = None
    """Column with the final answer that grading compares, or a list of accepted answers; else it
    is read from the solution."""
    system: str | None = None
    """Column with the student's system prompt, the same in all rows. That of `data` is used in
    place of the prompt format's."""
    licence: str | None = None
    """Column with the row's licence; else the one on a hub data set's card, if it names one."""


class DataConfig(Frozen):
    """Questions to learn from and questions to be tested on."""

    source: str = "arithmetic"
    """Generated (`arithmetic`, `arithmetic-s1`, `arithmetic-sky-t1`, `countdown`,
    `countdown-small`), a local .jsonl/.json/.parquet/.csv file, or `hub:org/name`."""
    revision: Commit | None = None
    """Commit of a hub data set (40 hex digits); empty: the one that `rlt fetch` pinned here."""
    hub_split: str = "train"
    """Split of a hub data set."""
    fields: FieldMapping = FieldMapping()
    """Which columns hold what. Where neither the default columns nor others are named that are
    there, `problem` / `solution` / `answer`, verl's `reward_model.ground_truth`, ShareGPT's
    `conversations` and OpenAI's `messages` are looked for; `rlt plan` says what was found."""
    split_at: str | None = None
    """When the solution column holds the working and then the final answer (GSM8K: `####`),
    the text before this marker becomes the trace and the text after it the solution."""
    conversations: bool = False
    """The source has a `conversations` column with tagged traces (Bespoke-Stratos-17k,
    Sky-T1_data_17k)."""
    turns: Literal["one", "last"] = "one"
    """Of a conversation of several exchanges: `one` drops and lists it, `last` takes its last
    exchange without what came before."""
    max_dropped: Fraction = 0.05
    """Share of rows that may be unusable (unreadable, empty, misplaced tags, a provider's error
    message): they are dropped and listed; above it the data set is refused."""
    n_train: Positive | None = None
    """Training questions to keep, chosen by `seed`; all when empty."""
    n_validation: int = Field(default=64, ge=0)
    """Held-out questions on which the teachers' rewards are compared."""
    n_test: int = Field(default=200, ge=0)
    """Held-out questions on which students are tested."""
    max_prompt_tokens: Positive = 16384
    """Questions whose teacher prompt is longer are dropped, counted and listed."""
    near_duplicate: Fraction | None = 0.8
    """Questions whose 8-token shingles have at least this Jaccard index with an earlier question's
    are dropped, counted and listed; empty: only the same question counts as a duplicate."""
    overlap: Literal["drop", "report"] = "drop"
    """Training questions that share 8 words in a row with a question of an evaluation set:
    `drop` leaves them out, `report` only lists them (table `eval_overlaps`)."""
    seed: Seed = 0
    """Seed of the generator, of the split and of subsets."""
