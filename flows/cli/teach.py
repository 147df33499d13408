"""`rlt teach`: of a teacher's explanations of questions, those that a student learns most from."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.init import columns_of, gpu_gib, recognised
from flows.cli.options import (
    DEFAULT_STORE,
    SetOption,
    StoreOption,
    check_output,
    new_plan,
    open_store,
)
from flows.cli.plan import to_compute
from flows.cli.run import compute
from flows.cli.terminal import print, table_console
from flows.planning import Plan
from rlt_core import hf_hub
from rlt_core.data.sources import file_digest, found_layout
from rlt_core.errors import UserError
from rlt_core.prompts.format import RECORD
from rlt_core.store import Store

SOURCES = ("hub:", "folder:", "artifact:", "package:")
ENDPOINT = "endpoint:"


Questions = Annotated[
    Path, typer.Argument(help="JSONL, JSON, CSV or Parquet: questions with solutions.")
]
Teacher = Annotated[
    str,
    typer.Option(
        help="Model that explains: org/name on the hub, a folder, a name in the store, "
        "package:NAME, or endpoint:NAME for an LLM at RLT_REFINE_BASE_URL.",
        show_default=False,
    ),
]
Student = Annotated[
    str,
    typer.Option(help="Model that will be fine-tuned, named in the same way.", show_default=False),
]
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Chat data to write: .jsonl or .parquet.")
]
SamplesOption = Annotated[int, typer.Option(min=1, help="Explanations per question.")]
BudgetTokens = Annotated[int | None, typer.Option(min=1, help="Tokens that the teacher may use.")]
BudgetUSD = Annotated[
    float | None, typer.Option("--budget-usd", min=0, help="Money that an endpoint may cost.")
]


def teach(
    questions: Questions,
    teacher: Teacher,
    student: Student,
    output: OutputOption = Path("distilled.jsonl"),
    samples: SamplesOption = 16,
    keep: Annotated[int, typer.Option(min=1, help="Explanations to keep of a question.")] = 1,
    only_correct: Annotated[
        bool, typer.Option("--only-correct", help="Keep those alone that reach the solution.")
    ] = False,
    budget_tokens: BudgetTokens = None,
    budget_usd: BudgetUSD = None,
    max_student_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest row to train on; by default the student's context."),
    ] = None,
    set_: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write the explanations of your questions from which your student learns most.

    The teacher sees a question and its solution and writes explanations; the student's log-probs
    score them (`rlt reward`), and the best that fit are kept. After Ctrl-C, or with a larger
    budget, the same command continues.
    """
    check_output(output, (".jsonl", ".parquet"), questions)
    if keep > samples:
        raise UserError(f"--keep {keep}: only {samples} are written of each (--samples)")
    changes = [
        *of_data(questions, set_ or ()), *_models(open_store(store), teacher, student, samples),
        f"trace_selection.keep={keep}",
        f"trace_selection.only_correct={json.dumps(only_correct)}",
        f"trace_selection.max_student_tokens={json.dumps(max_student_tokens)}",
        *of_budget([teacher], budget_tokens, budget_usd),
    ]  # fmt: skip
    plan = computed("teach", changes, set_ or (), store)
    committed = plan.store.manifests_of(item.node.ref for item in plan.nodes)
    made = {one.stage: one for one in committed.values()}
    from flows.cli.teach_output import show_examples, show_table, write_chat  # slow

    rows = write_chat(plan.store, made["trace-selection"], output)
    console = table_console()
    show_table(console, plan.store, made)
    show_examples(console, plan.store, made)
    print(f"written: {output} ({rows} rows)")


# ---------------------------------------------------------------- options → config
def computed(
    target: str, changes: Sequence[str], given: Sequence[str], store: str, quiet: bool = False
) -> Plan:
    """Compute an experiment and return its plan; exits unless all is done.

    Raises UserError for several training seeds: what is shown and written is that of one.
    """
    plan = new_plan(target, "teach", [*changes, *of_machine(), *given], None, store)
    if len(plan.config.seeds) > 1:
        raise UserError(
            f"seeds={list(plan.config.seeds)}: one at a time here; give the command for each, "
            f"with --set 'seeds=[{plan.config.seeds[0]}]'"
        )
    plan.require_computable()
    for text in () if quiet else to_compute(plan):
        print(text)
    if status := compute(plan, quiet):
        raise typer.Exit(status)
    return plan


def of_budget(teachers: Sequence[str], tokens: int | None, usd: float | None) -> list[str]:
    """Return the changes that limit what teachers may use."""
    if usd is not None and not any(teacher.startswith(ENDPOINT) for teacher in teachers):
        raise UserError("--budget-usd is for an endpoint; a model's budget is --budget-tokens")
    return [
        f"resources.budget_tokens={json.dumps(tokens)}", f"resources.budget_usd={json.dumps(usd)}"
    ]  # fmt: skip


def of_data(questions: Path, given: Sequence[str]) -> Iterator[str]:
    """Yield the changes that name the file and, unless some are given, its columns."""
    file_digest(str(questions), "QUESTIONS")
    yield f"data.source={json.dumps(str(questions.absolute()))}"
    if any(change.startswith("data.fields.") for change in given):
        return
    found = recognised(questions)
    if not found_layout(found):
        print(f"{questions}: {'; '.join(columns_of(questions, found))}", file=sys.stderr)
    for name, column in found.fields.model_dump(exclude_defaults=True).items():
        yield f"data.fields.{name}={json.dumps(column)}"
    if found.split_at:
        yield f"data.split_at={json.dumps(found.split_at)}"


def _models(store: Store, teacher: str, student: str, samples: int) -> Iterator[str]:
    """Yield the changes that name teacher and student, and how many explanations are sampled."""
    of_student, of_teacher = source_of(store, "--student", student), ""
    if teacher.startswith(ENDPOINT):
        yield f"base_model={json.dumps(of_student)}"
        yield of_endpoint(teacher, samples)
    else:
        of_teacher = source_of(store, "--teacher", teacher)
        yield f"base_model={json.dumps(of_teacher)}"
        yield f"trace_generation.n={samples}"
        if of_student != of_teacher:
            yield f"reward_student={json.dumps(of_student)}"
    yield from of_format(store, [of_teacher, of_student])


def of_endpoint(teacher: str, samples: int) -> str:
    """Return the change that makes `endpoint:MODEL` the teacher."""
    model = teacher.removeprefix(ENDPOINT)
    chat = {"name": name_of(teacher), "model": model, "n": samples, "max_tokens": 2048}
    return f"endpoint_teacher={json.dumps(chat | {'max_dropped': 1.0})}"


def name_of(model: str) -> str:
    """Return a model's name in tables: `org/name` is org-name, a folder its last part."""
    text = Path(model).name if Path(model).is_absolute() else model.partition(":")[2] or model
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def source_of(store: Store, option: str, model: str) -> str:
    """Return a model's source as the config names it; a model of the hub that is not pinned here
    is downloaded. Raises UserError."""
    if model.startswith("hub:"):
        return _fetched(model)
    if model.startswith(SOURCES):
        return model
    if Path(model).expanduser().is_dir():
        return f"folder:{Path(model).expanduser().absolute()}"
    try:
        return f"artifact:{store.find_model(model).ref.key}"
    except UserError as error:
        ours = {name.partition("/")[0] for name in store.refs()}
        is_repo = re.fullmatch(r"[\w.-]+/[\w.-]+(@[0-9a-f]{40})?", model)
        if is_repo and model.partition("/")[0] not in ours:
            return _fetched(f"hub:{model}")
        raise UserError(
            f"{option} {model}: neither org/name on the hub, a model folder nor package:NAME, and "
            f"{error}"
        ) from None


def _fetched(source: str) -> str:
    """Download a model of the hub unless a commit is named or was fetched before."""
    repo, _, revision = source.removeprefix("hub:").partition("@")
    if hf_hub.pinned(repo, revision or None, "model") == hf_hub.UNPINNED:
        print(f"{repo}: downloading from the hub", file=sys.stderr)
        hf_hub.download(repo, None, "model")
    return source


def of_format(store: Store, sources: Sequence[str]) -> list[str]:
    """Return the change that names the prompt format of the first model that was trained with
    one."""
    found = next(filter(None, (_format_of(store, one) for one in sources)), None)
    return [f"prompt_format={json.dumps(str(found))}"] if found else []


def _format_of(store: Store, source: str) -> Path | None:
    """Return the file with the prompt format that a model was trained with, if it was."""
    kind, _, name = source.partition(":")
    folder = Path(name)
    if kind == "artifact":
        folder = store.intact(store.find_model(name), RECORD) / "model"  # not the weights
    file = folder / RECORD
    return file if kind in ("artifact", "folder") and file.is_file() else None


def of_machine() -> Iterator[str]:
    memory = gpu_gib()
    if not memory:
        yield "trace_generation.max_tokens=512"
    else:
        yield f"resources.gpu_gib={memory}"
        yield "resources.shard_questions=64"
        if find_spec("vllm"):
            yield "resources.engine=vllm"
