"""`rlt teach`: of a teacher's explanations of questions, those that a student learns most from."""

import json
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import options
from flows.cli.init import columns_of, gpu_gib, recognised
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
Changes = dict[str, Any]
"""Fields of the config by their paths."""

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
    set_: options.SetOption = None,
    store: options.StoreOption = options.DEFAULT_STORE,
) -> None:
    """Write the explanations of your questions from which your student learns most.

    The teacher sees a question and its solution and writes explanations; the student's log-probs
    score them (`rlt reward`), and the best that fit are kept. After Ctrl-C, or with a larger
    budget, the same command continues.
    """
    options.check_output(output, (".jsonl", ".parquet"), questions)
    if keep > samples:
        raise UserError(f"--keep {keep}: only {samples} are written of each (--samples)")
    changes = {
        **of_data(questions, set_ or ()),
        **_models(options.open_store(store), teacher, student, samples),
        "trace_selection.keep": keep,
        "trace_selection.only_correct": only_correct,
        "trace_selection.max_student_tokens": max_student_tokens,
        **of_budget([teacher], budget_tokens, budget_usd),
    }
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
    target: str, changes: Changes, given: Sequence[str], store: str, quiet: bool = False
) -> Plan:
    """Compute an experiment and return its plan; exits unless all is done.

    Raises UserError for several training seeds: what is shown and written is that of one.
    """
    own = [f"{path}={json.dumps(value)}" for path, value in (changes | of_machine()).items()]
    plan = options.new_plan(target, "teach", [*own, *given], None, store)
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


def of_budget(teachers: Sequence[str], tokens: int | None, usd: float | None) -> Changes:
    """Limit what teachers may use."""
    if usd is not None and not any(teacher.startswith(ENDPOINT) for teacher in teachers):
        raise UserError("--budget-usd is for an endpoint; a model's budget is --budget-tokens")
    return {"resources.budget_tokens": tokens, "resources.budget_usd": usd}


def of_data(questions: Path, given: Sequence[str]) -> Changes:
    """Name the file and, unless some are given, its columns."""
    file_digest(str(questions), "QUESTIONS")
    changes: Changes = {"data.source": str(questions.absolute())}
    if any(change.startswith("data.fields.") for change in given):
        return changes
    found = recognised(questions)
    if not found_layout(found):
        print(f"{questions}: {'; '.join(columns_of(questions, found))}", file=sys.stderr)
    changes |= {
        f"data.fields.{name}": column
        for name, column in found.fields.model_dump(exclude_defaults=True).items()
    }
    return changes | ({"data.split_at": found.split_at} if found.split_at else {})


def _models(store: Store, teacher: str, student: str, samples: int) -> Changes:
    """Name teacher and student, and how many explanations are sampled."""
    of_student, of_teacher = source_of(store, "--student", student), ""
    if teacher.startswith(ENDPOINT):
        changes: Changes = {"base_model": of_student} | of_endpoint(teacher, samples)
    else:
        of_teacher = source_of(store, "--teacher", teacher)
        changes = {"base_model": of_teacher, "trace_generation.n": samples}
        if of_student != of_teacher:
            changes["reward_student"] = of_student
    return changes | of_format(store, [of_teacher, of_student])


def of_endpoint(teacher: str, samples: int) -> Changes:
    """Make `endpoint:MODEL` the teacher."""
    chat = {"name": name_of(teacher), "model": teacher.removeprefix(ENDPOINT), "n": samples}
    return {"endpoint_teacher": chat | {"max_tokens": 2048, "max_dropped": 1.0}}


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
        return f"artifact:{store.find(model, 'model').ref.key}"
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


def of_format(store: Store, sources: Sequence[str]) -> Changes:
    """Name the prompt format of the first model that was trained with one."""
    for source in sources:
        kind, _, name = source.partition(":")
        folder = Path(name)
        if kind == "artifact":
            folder = store.intact(store.find(name, "model"), RECORD) / "model"  # not the weights
        if kind in ("artifact", "folder") and (folder / RECORD).is_file():
            return {"prompt_format": str(folder / RECORD)}
    return {}


def of_machine() -> Changes:
    memory = gpu_gib()
    if not memory:
        return {"trace_generation.max_tokens": 512}
    engine = {"resources.engine": "vllm"} if find_spec("vllm") else {}
    return {"resources.gpu_gib": memory, "resources.shard_questions": 64} | engine
