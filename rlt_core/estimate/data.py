"""Questions, traces and tokens of a node: counted where the store or a file knows, else assumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlt_core.config import DataConfig
from rlt_core.data.generators.countdown import EVALUATION_QUESTIONS
from rlt_core.data.row_files import count_rows
from rlt_core.data.sources import found_layout
from rlt_core.graph import Node
from rlt_core.stages import (
    DatasetPrepConfig,
    EvaluationStageConfig,
    StudentSFTStageConfig,
    TraceGenerationConfig,
)
from rlt_core.store import Manifest, Store

ROWS = {
    "hub:bespokelabs/Bespoke-Stratos-17k": 16_710,
    "hub:GAIR/LIMR": 1_389,
    "hub:simplescaling/s1K": 1_000,
    "hub:NovaSky-AI/Sky-T1_data_17k": 16_401,
}
"""Rows of published data sets, as their cards say: https://huggingface.co/datasets/<name>."""
TASKS = {"aime24": 30, "math_500": 500, "gpqa_diamond": 198, "countdown": EVALUATION_QUESTIONS}
"""Questions of evaluation sets."""
UNKNOWN_ROWS = 1000
LONGEST = 4096
"""Tokens of the longest question and solution together, before they are counted."""
TEMPLATE = 60
"""Tokens of system prompt, roles and tags around a question and its answer."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a text; assumed where nothing was counted."""

    question: float = 150
    solution: float = 400
    trace: float = 4500
    """A data set's own trace: long thoughts of R1 and the like."""
    completion: float = 3000
    """A model's completion, unless half of its limit is less."""


ASSUMED = Lengths()
GENERATED = Lengths(question=30, solution=10, trace=50, completion=50)
"""Texts of generated problems, one token per character."""


@dataclass(frozen=True)
class Questions:
    """A data set."""

    train: int
    validation: int
    test: int
    question: float
    """Tokens; so are the next two."""
    solution: float
    trace: float
    with_trace: int
    longest: float
    """Tokens of the longest question and solution together."""

    @property
    def student_prompt(self) -> float:
        return TEMPLATE + self.question

    @property
    def longest_prompt(self) -> float:
        return TEMPLATE + self.longest

    @property
    def teacher_prompt(self) -> float:
        return TEMPLATE + self.question + self.solution


@dataclass(frozen=True)
class Traces:
    """Traces of a node."""

    count: int
    questions: int
    tokens: float
    """Mean of one trace."""


class Facts:
    """Known or assumed sizes of the data of a graph."""

    def __init__(self, store: Store | None, nodes: list[Node]) -> None:
        refs = [node.ref for node in nodes]
        self._manifests: dict[str, Manifest] = store.manifests_of(refs) if store else {}
        self._questions: dict[str, Questions] = {}

    def manifest(self, node: Node) -> Manifest | None:
        """The manifest of a node, if it is committed."""
        return self._manifests.get(node.key)

    # ------------------------------------------------------------ questions
    def questions(self, node: Node) -> Questions:
        """Questions of `dataset-prep`, or of a file of traces that brings its own."""
        if node.key not in self._questions:
            self._questions[node.key] = self._questions_of(node)
        return self._questions[node.key]

    def _questions_of(self, node: Node) -> Questions:
        manifest = self.manifest(node)
        if not isinstance(node.config, DatasetPrepConfig):
            rows, given = self.traces(node).count, ASSUMED
            lengths = (given.question, given.solution, given.trace)
            return Questions(rows, 0, 0, *lengths, with_trace=rows, longest=LONGEST)
        if manifest is None:
            return _expected(node.config.data, node.paths.get("source"))
        found = manifest.metrics
        texts = ("question", "solution", "trace")
        medians = {name: found.get(f"{name}_tokens_p50", 0.0) for name in texts}
        longest = sum(found.get(f"{name}_tokens_p100", 0.0) for name in texts[:2])
        train, validation, test = (int(found[name]) for name in ("train", "validation", "test"))
        return Questions(
            train, validation, test, **medians, with_trace=int(found["with_trace"]),
            longest=longest,
        )  # fmt: skip

    def completion(self, limit: int, questions: Questions) -> float:
        """Tokens of a completion with at most `limit`."""
        usual = GENERATED.completion if questions.question < 60 else ASSUMED.completion
        return min(usual, limit / 2)

    # ------------------------------------------------------------ traces
    def traces(self, node: Node) -> Traces:
        """Traces of a node of that kind."""
        manifest = self.manifest(node)
        config = node.config
        if manifest and "traces" in manifest.metrics and "mean_tokens" in manifest.metrics:
            count = int(manifest.metrics["traces"])
            asked = int(manifest.metrics.get("questions", count))
            return Traces(count, asked, manifest.metrics["mean_tokens"])
        if isinstance(config, TraceGenerationConfig):
            questions = self.questions(node.inputs["questions"])
            there = questions.train if config.split == "train" else questions.validation
            asked = min(there, config.sampling.n_questions or there)
            tokens = self.completion(config.sampling.max_tokens, questions)
            return Traces(asked * config.sampling.n, asked, tokens)
        if "traces" in node.inputs:  # refined
            return self.traces(node.inputs["traces"])
        if "questions" in node.inputs:  # the data set's own
            own = self.questions(node.inputs["questions"])
            return Traces(own.with_trace, own.with_trace, own.trace)
        rows = count_rows(Path(node.paths["source"]))
        return Traces(rows, rows, ASSUMED.trace)

    def to_learn_from(self, node: Node) -> Traces:
        """Rows of a student's SFT, with the tokens of their traces."""
        config = node.config
        assert isinstance(config, StudentSFTStageConfig)
        questions = self.questions(node.inputs["questions"])
        if config.traces == "none":
            all_ = Traces(questions.train, questions.train, 0.0)
        elif config.traces == "dataset":
            all_ = Traces(questions.with_trace, questions.with_trace, questions.trace)
        else:
            all_ = self.traces(node.inputs["traces"])
        chosen = min(all_.questions, config.n_questions or all_.questions)
        one = config.rank is not None or config.fits
        each = 1 if one else max(1, all_.count // max(1, all_.questions))
        return Traces(chosen * each, chosen, all_.tokens)

    def tested(self, node: Node) -> list[tuple[int, float]]:
        """(questions, tokens of their prompts) of each task of an evaluation."""
        config = node.config
        assert isinstance(config, EvaluationStageConfig)
        found = []
        for task in config.evaluation.tasks:
            data_set = self.questions(node.inputs["questions"])
            count = TASKS.get(task, data_set.test)
            if task == "countdown" and task in node.inputs:
                data_set = self.questions(node.inputs[task])
                count = data_set.test
            count = min(count, config.evaluation.max_questions or count)
            found.append((count, data_set.student_prompt))
        return found


def _expected(data: DataConfig, path: str | None) -> Questions:
    """Questions of a data set that is not prepared yet."""
    lengths = ASSUMED if path or data.source.startswith("hub:") else GENERATED
    rows = count_rows(Path(path)) if path else ROWS.get(data.source, UNKNOWN_ROWS)
    left = max(1, rows - data.n_validation - data.n_test)
    traced = data.fields.trace is not None or data.split_at is not None or not path
    if path and not traced:
        traced = "trace" in (found_layout(data.model_copy(update={"source": path})) or "")
    train = data.n_train or left
    if path or data.source.startswith("hub:"):
        train = min(train, left)
    half = data.max_prompt_tokens / 4
    return Questions(
        train, data.n_validation, data.n_test,
        min(lengths.question, half), min(lengths.solution, half), lengths.trace,
        with_trace=train if traced else 0, longest=LONGEST,
    )  # fmt: skip
