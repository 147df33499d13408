"""Questions to learn from and to be tested on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from rlt_core.config.base import Commit, Fraction, Frozen, Grader, Positive, Seed
from rlt_core.extensions import is_path, pinned


class FieldMapping(Frozen):
    """Columns of the source; `a.b` is the field b of the column a."""

    question: str = "question"
    """Column with the question."""
    solution: str = "solution"
    """Column with the solution."""
    trace: str | None = None
    """Column with the data set's own reasoning trace, if it has one."""
    answer: str | None = None
    """Column with the final answer for grading, or a list of accepted answers; empty: the answer
    is read from the solution."""
    system: str | None = None
    """Column with the student's system prompt, the same in all rows, which replaces the prompt
    format's (in `data`)."""
    licence: str | None = None
    """Column with the row's licence; empty: the licence on a hub data set's card, if any."""


class DataConfig(Frozen):
    """Questions to learn from and questions to be tested on."""

    source: str = "arithmetic"
    """Generated (`arithmetic`, `arithmetic-s1`, `arithmetic-sky-t1`, `running-totals`,
    `running-totals-perfect`, `countdown`, `countdown-small`), a local
    .jsonl/.ndjson/.json/.parquet/.csv/.tsv file, `hub:org/name`, or `module:function` of your own,
    which returns rows (dicts) as such a file has them."""
    revision: Commit | None = None
    """Commit of a hub data set (40 hex digits); empty: the commit that `rlt fetch` pinned here."""
    hub_split: str = "train"
    """Split of a hub data set; of one with several configs `CONFIG/SPLIT`, e.g. `main/train`."""
    fields: FieldMapping = FieldMapping()
    """Columns of the source. If the source does not have them, `problem` / `solution` / `answer`,
    verl's `reward_model.ground_truth`, TRL's `prompt` / `completion`, Alpaca's `instruction`,
    ShareGPT's `conversations` and OpenAI's `messages` are looked for; `rlt plan` shows what was
    found."""
    split_at: str | None = None
    """When the solution column holds the working and then the final answer (GSM8K: `####`),
    the text before this marker becomes the trace and the text after it the solution."""
    conversations: bool = False
    """The source has a `conversations` column with tagged traces (Bespoke-Stratos-17k,
    Sky-T1_data_17k)."""
    turns: Literal["one", "last"] = "one"
    """Conversations of several exchanges: `one` drops and lists them, `last` takes their last
    exchange without the earlier ones."""
    grader: Grader | None = Field(default=None, exclude_if=lambda grader: grader is None)
    """Grader of the answers: `math`, `arithmetic`, `multiple_choice` or `module:function` of your
    own; empty: `math`."""
    max_dropped: Fraction = 0.05
    """Fraction of rows that may be unusable (unreadable, empty, misplaced tags, a provider's error
    message). Unusable rows are dropped and listed; with more of them the data set is refused."""
    n_train: Positive | None = None
    """Number of training questions to keep, chosen by `seed`; empty: all."""
    n_validation: int = Field(default=64, ge=0)
    """Number of held-out questions on which the teachers' rewards are compared."""
    n_test: int = Field(default=200, ge=0)
    """Number of held-out questions on which students are tested."""
    test_source: str | None = Field(default=None, exclude_if=lambda source: source is None)
    """File with the held-out test questions, in the columns of `source`; at most `n_test` of them
    are chosen by `seed`. Empty: they are taken from `source`."""
    max_prompt_tokens: Positive = 16384
    """Maximum length of the teacher prompt; questions with a longer one are dropped and listed."""
    near_duplicate: Fraction | None = 0.8
    """Jaccard index of 8-token shingles from which a question counts as a duplicate of an earlier
    one and is dropped and listed; empty: only the same question counts as a duplicate."""
    overlap: Literal["drop", "report"] = "drop"
    """Training questions that share 8 consecutive words with a question of an evaluation set:
    `drop` leaves them out, `report` only lists them (table `eval_overlaps`)."""
    seed: Seed = 0
    """Seed of the generator, of the split and of subsets."""

    def located(self, paths: Mapping[str, str]) -> DataConfig:
        """Return the config with the paths of local files that it names by content."""
        test_source = self.test_source and paths.get(self.test_source, self.test_source)
        return self.replaced(source=paths.get(self.source, self.source), test_source=test_source)

    @field_validator("source")
    @classmethod
    def _pinned(cls, source: str) -> str:
        return pinned(source) if is_path(source) and not source.startswith("hub:") else source
