"""What a model can be evaluated on: questions of our own, and benchmarks of the hub by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlt_core.errors import UserError
from rlt_core.grading import GRADERS


@dataclass(frozen=True)
class EvalTask:
    """Questions under a name."""

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
        for question in self.questions:
            if question["grader"] not in GRADERS:
                raise UserError(
                    f"task {self.name}, question {question['question_id']}: grader "
                    f"{question['grader']!r} is not one of {', '.join(GRADERS)}"
                )
        counts = Counter(question["question_id"] for question in self.questions)
        question_id, count = counts.most_common(1)[0]
        if count > 1:
            raise UserError(
                f"task {self.name}: question_id {question_id} occurs {count} times; "
                "each question needs its own"
            )


@dataclass(frozen=True)
class Benchmark:
    """A benchmark whose data are on the hub and whose prompts are lighteval's."""

    repo: str
    """Data set on the hub."""
    module: str
    """lighteval module that holds its config."""
    config: str
    """Name of the config in that module."""
    grader: str
    gated: bool = False
    """The hub wants an account that has accepted the data set's terms."""


BENCHMARKS: dict[str, Benchmark] = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "aime", "aime24", "math"),
    "math_500": Benchmark("HuggingFaceH4/MATH-500", "math_500", "math_500", "math"),
    "gpqa_diamond": Benchmark(
        "Idavidrein/gpqa", "gpqa", "gpqa_diamond_instruct", "multiple_choice", gated=True
    ),
}


OWN = ("test", "countdown")
"""Tasks whose questions the pipeline makes or holds out itself."""


def require_known(tasks: Sequence[str]) -> None:
    """Raises UserError for a name in `evaluation.tasks` that is none, or where there is no name."""
    known = (*OWN, *BENCHMARKS)
    unknown = [name for name in tasks if name not in known]
    if unknown or not tasks:
        problem = f"there is no task {unknown[0]!r}" if unknown else "it names no task"
        raise UserError(f"evaluation.tasks: {problem}; there are {', '.join(known)}")


def benchmark_task(
    name: str, max_questions: int | None = None, revision: str | None = None
) -> EvalTask:
    """A benchmark with lighteval's prompts and the hub's data.

    `revision`: commit of the data set, downloaded where this machine lacks it; the fetched one when
    empty. GPQA's choices are shuffled with a fixed seed. Raises UserError for an unknown name or
    data that cannot be had.
    """
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    from rlt_core.evaluation.adapter import benchmark_questions

    return EvalTask(name, benchmark_questions(name, revision)[:max_questions])
