"""Questions, traces and tokens of a node: counted where the store or a file knows, else assumed."""

from dataclasses import dataclass
from pathlib import Path

from rlt_core.config import DataConfig
from rlt_core.data.row_files import count_rows
from rlt_core.data.sources import GENERATED as GENERATORS
from rlt_core.data.sources import found_layout
from rlt_core.graph import Node
from rlt_core.stages.cost import Cost, Questions, Traces
from rlt_core.store import Manifest, Store

ROWS = {
    "hub:bespokelabs/Bespoke-Stratos-17k": 16_710,
    "hub:GAIR/LIMR": 1_389,
    "hub:simplescaling/s1K": 1_000,
    "hub:NovaSky-AI/Sky-T1_data_17k": 16_401,
}
"""Rows of published data sets, as their cards say: https://huggingface.co/datasets/<name>."""
UNKNOWN_ROWS = 1000
LONGEST = 4096
"""Tokens of the longest question and solution together, before they are counted."""


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


class Sizes:
    """Costs of nodes, and known or assumed sizes of their data."""

    def __init__(self, store: Store | None, nodes: list[Node]) -> None:
        refs = [node.ref for node in nodes]
        self._manifests: dict[str, Manifest] = store.manifests_of(refs) if store else {}
        self._costs: dict[str, Cost] = {}

    def manifest(self, node: Node) -> Manifest | None:
        return self._manifests.get(node.key)

    def cost(self, node: Node) -> Cost:
        if node.key not in self._costs:
            self._costs[node.key] = node.stage.cost(node.config, SizedInputs(self, node))
        return self._costs[node.key]

    def questions(self, node: Node) -> Questions:
        """Questions of a data set, or of a file of traces that brings its own."""
        made = self.cost(node).makes
        if isinstance(made, Questions):
            return made
        rows, given = self.traces(node).count, ASSUMED
        lengths = (given.question, given.solution, given.trace)
        return Questions(rows, 0, 0, *lengths, with_trace=rows, longest=LONGEST)

    def traces(self, node: Node) -> Traces:
        """Traces of a node; of one whose stage declares none, as many as it reads."""
        made = self.cost(node).makes
        if isinstance(made, Traces):
            return made
        source = node.inputs.get("traces")
        return SizedInputs(self, node).written(self.traces(source) if source else Traces(0, 0, 0))


@dataclass(frozen=True)
class SizedInputs:
    """`rlt_core.stages.cost.Inputs` of a node."""

    sizes: Sizes
    node: Node

    @property
    def questions(self) -> Questions:
        return self.sizes.questions(self.node.inputs["questions"])

    @property
    def traces(self) -> Traces:
        return self.sizes.traces(self.node.inputs["traces"])

    def data_set(self, name: str) -> Questions | None:
        return self.sizes.questions(self.node.inputs[name]) if name in self.node.inputs else None

    def prepared(self, data: DataConfig) -> Questions:
        manifest = self.sizes.manifest(self.node)
        if manifest is None:
            return _expected(data, self.node.paths.get("source"))
        found = manifest.metrics
        texts = ("question", "solution", "trace")
        medians = {name: found.get(f"{name}_tokens_p50", 0.0) for name in texts}
        longest = sum(found.get(f"{name}_tokens_p100", 0.0) for name in texts[:2])
        train, validation, test, with_trace = (
            int(found[name]) for name in ("train", "validation", "test", "with_trace")
        )
        return Questions(
            train, validation, test, **medians, with_trace=with_trace, longest=longest
        )  # fmt: skip

    def written(self, expected: Traces | None = None) -> Traces:
        manifest = self.sizes.manifest(self.node)
        if manifest and "traces" in manifest.metrics and "mean_tokens" in manifest.metrics:
            count = int(manifest.metrics["traces"])
            asked = int(manifest.metrics.get("questions", count))
            return Traces(count, asked, manifest.metrics["mean_tokens"])
        if expected is not None:
            return expected
        rows = count_rows(Path(self.node.paths["source"]))
        return Traces(rows, rows, ASSUMED.trace)

    def completion(self, limit: int) -> float:
        usual = GENERATED if self.questions.question < 60 else ASSUMED
        return min(usual.completion, limit / 2)


def _expected(data: DataConfig, path: str | None) -> Questions:
    """Questions of a data set that is not prepared yet."""
    lengths = GENERATED if data.source in GENERATORS else ASSUMED
    rows = count_rows(Path(path)) if path else ROWS.get(data.source, UNKNOWN_ROWS)
    taken = data.n_validation + (0 if data.test_source else data.n_test)
    left = max(1, rows - taken)
    traced = not path or bool(data.fields.trace or data.split_at or data.conversations)
    if path and not traced:
        traced = "trace" in (found_layout(data.replaced(source=path)) or "")
    train = data.n_train or left
    if path or data.source.startswith("hub:"):
        train = min(train, left)
    half = data.max_prompt_tokens / 4
    return Questions(
        train, data.n_validation, data.n_test,
        min(lengths.question, half), min(lengths.solution, half), lengths.trace,
        with_trace=train if traced else 0, longest=LONGEST,
    )  # fmt: skip
