"""Evaluation tasks: questions of our own, and benchmarks of the hub by name.

To add a benchmark, add a row to `BENCHMARKS`, or name one's own in `imports.benchmarks`.
"""

import logging
import random
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from rlt_core.config import DataConfig, PromptPreset
from rlt_core.data.generators.countdown import (
    EVALUATION_QUESTIONS,
    EVALUATION_SEED,
    countdown_rows,
)
from rlt_core.data.rawrow import question_id, question_row
from rlt_core.data.sources import read_source
from rlt_core.errors import UserError
from rlt_core.hf_hub import UNPINNED, pinned, snapshot
from rlt_core.names import nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalTask:
    """Questions with a name."""

    name: str
    questions: Sequence[Mapping[str, Any]]
    """Rows with question_id, question, answer, grader and metadata; other columns are ignored."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise UserError(
                f"task {self.name!r}: a name has letters, digits, '_', '-' and '.' only"
            )
        if not self.questions:
            raise UserError(f"task {self.name} has no questions: nothing can be evaluated")
        counts = Counter(question["question_id"] for question in self.questions)
        question_id, count = counts.most_common(1)[0]
        if count > 1:
            raise UserError(
                f"task {self.name}: question_id {question_id} occurs {count} times; "
                "each question needs its own"
            )


OWN = ("test", "countdown")
"""Tasks whose questions the pipeline generates or holds out itself."""

# ---------------------------------------------------------------- benchmarks of the hub
CHOICES_SEED = 0
"""Seed of the position of the right answer among a question's choices."""


@dataclass(frozen=True)
class Benchmark:
    """A data set on the hub and the prompts for its problems."""

    repo: str
    """Data set on the hub."""
    grader: str
    prompts: Mapping[PromptPreset, str]
    """Preset -> template with `{problem}`, and `{A}` to `{D}` for multiple choice."""
    subset: str = "default"
    split: str = "test"
    problem: str = "problem"
    """Column with the problem."""
    answer: str = "answer"
    """Column with the right answer; for multiple choice, the text of the right choice."""
    wrong: tuple[str, ...] = ()
    """Columns with the wrong choices; the right answer is then a letter."""
    gated: bool = False
    """Whether the hub requires an account that has accepted the data set's terms."""


_SKYTHOUGHT_MATH = "Return your final response within \\boxed{{}}. {problem}"

BENCHMARKS: dict[str, Benchmark] = {
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024",
        "math",
        split="train",
        prompts={
            "lighteval": "\nSolve the following math problem efficiently and clearly.  The last "
            "line of your response should be of the following format: 'Therefore, the final answer "
            "is: $\\boxed{{ANSWER}}$. I hope it is correct' (without quotes) where ANSWER is just "
            "the final number or expression that solves the problem. Think step by step before "
            "answering.\n\n{problem}\n",
            "skythought": _SKYTHOUGHT_MATH,
        },
    ),
    "math_500": Benchmark(
        "HuggingFaceH4/MATH-500",
        "math",
        prompts={
            "lighteval": "Solve the following problem. The final line of your response MUST be of "
            'the following format:\n"ANSWER: $ANSWER" (without quotes) where $ANSWER is the final '
            "answer. Think step by step before answering.\n\n{problem}",
            "skythought": _SKYTHOUGHT_MATH,
        },
    ),
    "gpqa_diamond": Benchmark(
        "Idavidrein/gpqa",
        "multiple_choice",
        subset="gpqa_diamond",
        split="train",
        problem="Question",
        answer="Correct Answer",
        wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        gated=True,
        prompts={
            "lighteval": "Answer the following multiple choice question. The last line of your "
            "response should be of the following format: 'Answer: $LETTER' (without quotes) where "
            "LETTER is one of ABCD. Think step by step before answering.\n\n{problem}\n\n"
            "A) {A}\nB) {B}\nC) {C}\nD) {D}",
            "skythought": "Return your final response within \\boxed{{}} and only include the "
            "letter choice (A, B, C, or D) as your final response. {problem}\n"
            "A) {A}, B) {B}, C) {C}, D) {D}",
        },
    ),
}


def require_known(tasks: Sequence[str], own: Collection[str]) -> None:
    """Raise UserError if `evaluation.tasks` is empty or has an unknown name or one twice, or if one
    of the user's `own` benchmarks has the name of another task or of the mean over tasks."""
    if taken := sorted({*OWN, *BENCHMARKS, "mean"} & set(own)):  # tables have a row `mean`
        raise UserError(f"imports.benchmarks.{taken[0]}: the name is taken; rename it")
    known = (*OWN, *BENCHMARKS, *own)
    unknown = [name for name in tasks if name not in known]
    twice = [name for name in tasks if list(tasks).count(name) > 1]
    if unknown or twice or not tasks:
        problem = f"there is no task {unknown[0]!r}" if unknown else "it names no task"
        problem = f"{twice[0]!r} is named twice" if twice else problem
        hint = nearest(unknown[0] if unknown else "", known)
        raise UserError(f"evaluation.tasks: {problem}; {hint}")


def own_task(name: str, data: DataConfig) -> EvalTask:
    """Return all usable rows of a user's own benchmark, of equal questions the first. Raises
    UserError for data that cannot be had, and for more unusable rows than `data.max_dropped`
    allows."""
    answer = data.fields.answer or "answer"
    fields = data.fields.model_copy(update={"solution": answer, "answer": answer})
    rows = read_source(data.model_copy(update={"fields": fields})).rows
    questions: dict[str, dict[str, Any]] = {}
    for row in rows:
        row = replace(row, grader=row.grader or data.grader or "math")
        questions.setdefault(question_id(row.question), question_row(row, "test", name))
    if repeated := len(rows) - len(questions):
        log.warning(
            "task %s: %d of %d rows repeat the question of an earlier one and are left out; where "
            "their choices or data differ, write these into the question",
            name, repeated, len(rows),
        )  # fmt: skip
    return EvalTask(name, list(questions.values()))


def benchmark_task(
    name: str,
    max_questions: int | None = None,
    revision: str | None = None,
    prompts: PromptPreset = "lighteval",
) -> EvalTask:
    """Return an evaluation set that is the same on every machine: the countdown questions, or a
    benchmark's in the data set's order, with a preset's prompts.

    `revision`: commit of the data set, downloaded if this machine lacks it; by default the fetched
    one. Raises UserError for an unknown name or unavailable data.
    """
    if name == "countdown":
        rows = countdown_rows(EVALUATION_QUESTIONS, EVALUATION_SEED)
        return EvalTask(name, [question_row(row, "test", name) for row in rows])
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    places = random.Random(CHOICES_SEED)
    questions = [
        {
            "question_id": f"{name}-{index:04d}",
            **_asked(benchmark, row, prompts, places),
            "grader": benchmark.grader,
            "metadata": None,
        }
        for index, row in enumerate(_rows(name, benchmark, revision))
    ]
    return EvalTask(name, questions[:max_questions])


def _asked(
    benchmark: Benchmark, row: Mapping[str, Any], prompts: PromptPreset, places: random.Random
) -> dict[str, str]:
    """Return the question with its instruction, and the right answer. The right choice gets a
    random position among the wrong ones, as in lighteval."""
    problem, answer = str(row[benchmark.problem]), str(row[benchmark.answer])
    choices: dict[str, str] = {}
    if benchmark.wrong:
        texts = [row[column].strip() for column in benchmark.wrong]
        place = places.randint(0, len(texts))
        texts.insert(place, answer.strip())
        choices = dict(zip(ascii_uppercase, texts, strict=False))
        problem, answer = problem.strip(), ascii_uppercase[place]
    template = benchmark.prompts[prompts]
    return {"question": template.format(problem=problem, **choices), "answer": answer}


def _rows(name: str, benchmark: Benchmark, revision: str | None) -> list[dict[str, Any]]:
    from datasets import load_dataset

    commit, why = pinned(benchmark.repo, revision, "dataset"), ""
    if commit != UNPINNED:
        try:
            folder = snapshot(benchmark.repo, commit, "dataset", ["*"])
            with tempfile.TemporaryDirectory() as cache:
                loaded = load_dataset(str(folder), benchmark.subset, cache_dir=cache)
                return list(loaded[benchmark.split])
        except UserError as error:
            why = f"; {error}"
    terms = " (gated: accept its terms on the hub and set HF_TOKEN)" if benchmark.gated else ""
    raise UserError(
        f"task {name}: data set {benchmark.repo} is not on this machine{terms}; run `rlt fetch` "
        f"with this profile once, with network{why}"
    )
