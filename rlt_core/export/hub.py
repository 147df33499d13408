"""Write an artifact as a folder in the layout of the Hugging Face hub, and push it."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rlt_core.environment import new_folder
from rlt_core.errors import UserError, first_line
from rlt_core.export.card import Exported, render_card
from rlt_core.hf_hub import CARD, model_files
from rlt_core.prompts.format import PromptFormat
from rlt_core.rows import CHECKED, read_rows, read_table, table_files
from rlt_core.sql.schemas import QUESTIONS, SCORES, TRACES
from rlt_core.store import Manifest, Ref, Store
from rlt_core.store.files import reason

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


def export(
    store: Store,
    name: str,
    what: What,
    folder: Path,
    scores: str | None,
    repo: str | None,
    command: str,
) -> Exported:
    """Write the artifact of a name or key, completely or not at all; return its card's facts.

    `scores`: name or key of the traces' scores, by default the newest in the store; `repo`: on the
    hub, to which it will be pushed; `command`: what the user typed. Raises UserError for a folder
    that is not empty, and for an artifact that is not there or of another kind.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {folder}: name a new or empty folder")
    if scores and what == "model":
        raise UserError("--scores is for traces; leave it out with --what model")
    manifest, scored, written = store.find(name, what), None, Exported()
    with new_folder(folder) as out:
        if what == "model":
            for file in model_files(store.intact(manifest) / "model"):
                shutil.copyfile(file, out / file.name)
        else:
            scored = _scores_for(store, manifest, scores)
            written = _write_traces(store, manifest, scored, out)
        card = render_card(store, manifest, scored, written, repo or folder.name, command)
        (out / CARD).write_text(card, encoding="utf-8")
    return written


def _scores_for(store: Store, traces: Manifest, name: str | None) -> Manifest | None:
    """Return the scores of the traces: those named, else the newest in the store."""
    if name is not None:
        named = store.find(name, "scores")
        of = named.inputs.get("traces")
        if of and of != traces.ref:
            raise UserError(f"--scores {name}: scores of other traces ({of.key})")
        return named
    if ref := traces.inputs.get("scores"):  # they chose the traces
        return store.manifest(ref.kind, ref.key)
    own = [one for one in store.manifests("scores") if one.inputs.get("traces") == traces.ref]
    return max(own, key=lambda one: one.finished_at, default=None)


# ---------------------------------------------------------------- traces
def _along(
    store: Store, start: Manifest, has: Callable[[Manifest], bool], inputs: tuple[str, ...]
) -> Manifest:
    """Return the first artifact that has something, from `start` along the first of its `inputs`.
    Raises UserError if there is none."""
    one, seen = start, set[Ref]()  # a damaged store may have a circle
    while not has(one):
        seen.add(one.ref)
        ref = next((one.inputs[name] for name in inputs if name in one.inputs), None)
        parent = store.manifest(ref.kind, ref.key) if ref and ref not in seen else None
        if parent is None:
            missing = f"{inputs[0]} ({ref.key}) are" if ref else f"{inputs[0]} are"
            raise UserError(f"{start.label} ({start.ref.key}): its {missing} not in {store}")
        one = parent
    return one


def joined(store: Store, traces: Manifest, scored: Manifest | None) -> Iterator[Row]:
    """Yield a row per trace, with its split. Raises UserError if the scores are of other traces."""
    asked = _along(store, traces, lambda one: "questions" in one.tables, ("questions", "traces"))
    columns = [*OF_QUESTION, "question_id", "split"]
    folder = store.intact(asked, ".parquet")
    questions = {row["question_id"]: row for row in read_rows(folder, "questions", columns)}
    written = _along(store, traces, lambda one: "format" in one.config, ("traces", "teacher"))
    try:
        format = PromptFormat.model_validate(written.config["format"])
    except ValueError as error:
        raise UserError(f"{written.label} ({written.ref.key}): its {reason(error)}") from None
    system = _system(store, written) if format.student_system is None else None
    scores: dict[str, Row] = {}
    if scored:
        rows = read_rows(store.intact(scored, ".parquet"), "scores", ["trace_id", *OF_SCORE])
        scores = {row.pop("trace_id"): row for row in rows}
    matched = 0
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
    if scored and not matched:
        raise UserError(
            f"the scores {scored.label} ({scored.ref.key}) are of none of the traces "
            f"of {traces.label} ({traces.ref.key})"
        )


def _system(store: Store, manifest: Manifest) -> str:
    """Return the student's system prompt of the data, as the stages read it."""
    data = _along(
        store, manifest, lambda one: one.ref == manifest.inputs.get("system"), ("system",)
    )
    rows = read_rows(store.intact(data, ".parquet"), "questions", ["system"])
    return next((row["system"] for row in rows), None) or ""


def schema_of(scored: bool) -> pa.Schema:
    """The columns: texts first."""
    tables = [(OF_QUESTION, QUESTIONS), (OF_TRACE, TRACES), (OF_SCORE if scored else (), SCORES)]
    rest = [table.field(name) for names, table in tables for name in names]
    rest.insert(2, pa.field("explanation", pa.string()))
    return pa.schema([pa.field("messages", MESSAGES), *rest])


def _write_traces(store: Store, traces: Manifest, scored: Manifest | None, out: Path) -> Exported:
    """Write a Parquet file per split; return the facts for the card."""
    schema = schema_of(scored is not None)
    counts, sums, seen = Counter[str](), Counter[str](), Counter[str]()
    (out / "data").mkdir()
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        rows = joined(store, traces, scored)
        while batch := list(islice(rows, BATCH_ROWS)):
            for split in dict.fromkeys(row["split"] for row in batch):
                if split not in writers:
                    if not re.fullmatch(r"\w{1,64}", split or ""):
                        raise UserError(
                            f"the questions of {traces.label} ({traces.ref.key}) have the split "
                            f"{split!r}; a split is a word"
                        )
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
        raise UserError(f"{traces.label} ({traces.ref.key}) has no traces")
    means = {name: sums[name] / seen[name] for name in MEANS if seen[name]}
    return Exported(dict(counts), schema.names, means)


# ---------------------------------------------------------------- the hub
def require_pushable(repo: str) -> None:
    """Raise UserError for a name that is none, and if the hub is switched off here."""
    from huggingface_hub import constants

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
