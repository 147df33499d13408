"""Write an artifact as a folder in the layout of the Hugging Face hub, and push it."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_core.environment import disk_space
from rlt_core.errors import UserError, first_line
from rlt_core.export.card import CardFacts, render_card
from rlt_core.hf_hub import CARD, model_files
from rlt_core.prompts.format import PromptFormat
from rlt_core.rows import CHECKED, read_rows, read_table, table_files
from rlt_core.sql.schemas import QUESTIONS, SCORES, TRACES
from rlt_core.store import Manifest, Store

What = Literal["traces", "model"]
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
OF_QUESTION = ("question", "solution", "answer", "source", "licence")
OF_TRACE = ("question_id", "trace_id", "sample", "teacher", "closed")
OF_SCORE = (
    "student", "reward", "r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max",
    "penalty", "rank", "correct", "think_tokens",
)  # fmt: skip
MEANS = ("reward", "r_ss", "r_kl", "think_tokens")
BATCH_ROWS = 1000
Row = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    folder: Path
    rows: int
    """Rows of a data set; 0 for a model."""
    bytes: int
    notes: list[str] = field(default_factory=list)
    """What the user should know, a line each."""


@dataclass(frozen=True)
class Export:
    """What to export, where to, and what the card says about that."""

    store: Store
    name: str
    """The artifact's name or key."""
    what: What
    folder: Path
    scores: str | None
    """Name or key of the traces' scores; None: the newest in the store."""
    repo: str | None
    """Repository on the hub that it will be pushed to."""
    command: str

    def write(self) -> Exported:
        """Write the artifact, completely or not at all.

        Raises UserError for a folder that is not empty, and for an artifact that is not there or
        of another kind.
        """
        folder, manifest = require_new(self.folder), self.store.find(self.name)
        if self.scores and self.what == "model":
            raise UserError("--scores is for traces; leave it out with --what model")
        _require_kind(manifest, self.name, self.what)
        facts = CardFacts(manifest, self.repo or folder.name, self.command)
        notes: list[str] = []
        with _new_folder(folder) as out:
            if self.what == "model":
                for file in model_files(self.store.intact(manifest) / "model"):
                    shutil.copyfile(file, out / file.name)
            else:
                facts = replace(facts, scores=self._scores(manifest, notes))
                facts = _write_traces(self.store, facts, out)
            (out / CARD).write_text(render_card(self.store, facts), encoding="utf-8")
            size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        return Exported(folder, sum(facts.splits.values()), size, notes)

    def _scores(self, traces: Manifest, notes: list[str]) -> Manifest | None:
        """Return the scores of the traces: those named, else the newest in the store."""
        if self.scores is not None:
            named = self.store.find(self.scores)
            of = named.inputs.get("traces")
            if named.ref.kind != "scores":
                raise UserError(f"--scores {self.scores}: of kind {named.ref.kind}, not scores")
            if of and of != traces.ref:
                raise UserError(
                    f"--scores {self.scores}: scores of other traces ({of.key}), not of {self.name}"
                )
            return named
        if ref := traces.inputs.get("scores"):  # they chose the traces
            return self.store.manifest(ref.kind, ref.key)
        own = [m for m in self.store.manifests("scores") if m.inputs.get("traces") == traces.ref]
        own.sort(key=lambda one: one.finished_at, reverse=True)
        if len(own) > 1:
            others = ", ".join(f"{one.label} ({one.ref.key})" for one in own[1:])
            notes.append(
                f"scores: {own[0].label} ({own[0].ref.key}), the newest; --scores KEY takes "
                f"others: {others}"
            )
        return own[0] if own else None


def require_new(folder: Path) -> Path:
    """Return the whole path. Raises UserError for a file, or a folder that is not empty."""
    folder = folder.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: this is a file; name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to {folder}: the folder is not empty; name a new one, or remove it")
    return folder


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes `folder` at the end; after an error nothing is left of it."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with disk_space(folder):
            part.mkdir(parents=True)
            yield part
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _require_kind(manifest: Manifest, name: str, what: What) -> None:
    """Raise UserError for an artifact of another kind; it says what could be meant."""
    kind = manifest.ref.kind
    if kind == what:
        return
    fix = "`rlt artifacts list` shows all"
    if ref := manifest.inputs.get(what):
        fix = f"its {what}: {ref.key}"
    elif kind in get_args(What):
        fix = f"--what {kind} exports it"
    raise UserError(f"artifact {name!r} is of kind {kind}, not {what}; {fix}")


# ---------------------------------------------------------------- traces
def _along(
    store: Store, start: Manifest, has: Callable[[Manifest], bool], inputs: tuple[str, ...]
) -> Manifest:
    """Return the first artifact that has something, from `start` along the first of its `inputs`.
    Raises UserError if there is none."""
    one = start
    while not has(one):
        ref = next((one.inputs[name] for name in inputs if name in one.inputs), None)
        parent = store.manifest(ref.kind, ref.key) if ref else None
        if parent is None:
            missing = f"{inputs[0]} ({ref.key}) are" if ref else f"{inputs[0]} are"
            raise UserError(f"{start.label} ({start.ref.key}): its {missing} not in {store}")
        one = parent
    return one


def joined(store: Store, facts: CardFacts) -> Iterator[Row]:
    """Yield a row per trace, with its split. Raises UserError if the scores are of other traces."""
    traces = facts.manifest
    asked = _along(store, traces, lambda one: "questions" in one.tables, ("questions", "traces"))
    columns = [*OF_QUESTION, "question_id", "split"]
    folder = store.intact(asked, ".parquet")
    questions = {row["question_id"]: row for row in read_rows(folder, "questions", columns)}
    written = _along(store, traces, lambda one: "format" in one.config, ("traces", "teacher"))
    format = PromptFormat.model_validate(written.config["format"])
    system = _system(store, written) if format.student_system is None else None
    scores, matched = _scores_of(store, facts.scores), 0
    for file in table_files(store.intact(traces, ".parquet"), "traces"):
        table = read_table(file, columns=[*OF_TRACE, "text"], schema=TRACES)
        for trace in table.to_pylist():
            question, text = questions[trace["question_id"]], trace.pop("text")
            score = scores.get(trace["trace_id"])
            matched += score is not None
            yield {
                "messages": format.messages(
                    question["question"], question["solution"], text, system
                ),
                **{name: question[name] for name in (*OF_QUESTION, "split")},
                "explanation": text,
                **trace,
                **(score or dict.fromkeys(OF_SCORE)),
            }
    if facts.scores and not matched:
        raise UserError(
            f"the scores {facts.scores.label} ({facts.scores.ref.key}) are of none of the traces "
            f"of {traces.label} ({traces.ref.key})"
        )


def _system(store: Store, manifest: Manifest) -> str:
    """Return the student's system prompt of the data, as the stages read it."""
    data = _along(
        store, manifest, lambda one: one.ref == manifest.inputs.get("system"), ("system",)
    )
    rows = read_rows(store.intact(data, ".parquet"), "questions", ["system"])
    return next((row["system"] for row in rows), None) or ""


def _scores_of(store: Store, scores: Manifest | None) -> dict[str, Row]:
    """Return trace id -> reward, parts and rank."""
    if scores is None:
        return {}
    rows = read_rows(store.intact(scores, ".parquet"), "scores", ["trace_id", *OF_SCORE])
    return {row.pop("trace_id"): row for row in rows}


def schema_of(scored: bool) -> pa.Schema:
    """The columns: texts first."""
    tables = [(OF_QUESTION, QUESTIONS), (OF_TRACE, TRACES), (OF_SCORE if scored else (), SCORES)]
    rest = [table.field(name) for names, table in tables for name in names]
    rest.insert(2, pa.field("explanation", pa.string()))
    return pa.schema([pa.field("messages", MESSAGES), *rest])


def _write_traces(store: Store, facts: CardFacts, out: Path) -> CardFacts:
    """Write a Parquet file per split; return the facts with splits, columns and means."""
    schema = schema_of(facts.scores is not None)
    counts, sums, seen = Counter[str](), Counter[str](), Counter[str]()
    (out / "data").mkdir()
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        rows = joined(store, facts)
        while batch := list(islice(rows, BATCH_ROWS)):
            for split in dict.fromkeys(row["split"] for row in batch):
                if split not in writers:
                    file = out / "data" / f"{split}-00000-of-00001.parquet"
                    writers[split] = stack.enter_context(pq.ParquetWriter(file, schema, **CHECKED))
                part = [row for row in batch if row["split"] == split]
                writers[split].write_table(pa.Table.from_pylist(part, schema))
                counts[split] += len(part)
            for name in MEANS:
                values = [row[name] for row in batch if row[name] is not None]
                sums[name] += sum(values)
                seen[name] += len(values)
    if not counts:
        raise UserError(f"{facts.manifest.label} ({facts.manifest.ref.key}) has no traces")
    means = {name: sums[name] / seen[name] for name in MEANS if seen[name]}
    return replace(facts, splits=dict(counts), columns=schema.names, means=means)


# ---------------------------------------------------------------- the hub
def require_pushable(repo: str) -> None:
    """Raise UserError for a name that is none, and if the hub is switched off here."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo}: {error}") from None
    if repo.count("/") != 1:
        raise UserError(f"--push {repo}: write org/name")
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            "--push: this machine is set to work offline (HF_HUB_OFFLINE=1); unset it, or leave "
            "--push out: the folder can be pushed later"
        )


def push(folder: Path, repo: str, what: What) -> str:
    """Upload an exported folder; return its address. Raises UserError; the folder stays."""
    from huggingface_hub import HfApi

    kind = "model" if what == "model" else "dataset"
    try:
        api = HfApi()
        address = str(api.create_repo(repo, repo_type=kind, exist_ok=True))
        api.upload_folder(folder_path=folder, repo_id=repo, repo_type=kind)
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(
            f"--push {repo}: {first_line(error)}; {folder} is complete: "
            f"`hf upload {repo} {folder} --repo-type {kind}` pushes it (login: HF_TOKEN)"
        ) from None
    return address
