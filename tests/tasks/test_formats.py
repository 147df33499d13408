"""A model's prompt format: recorded, checked, and with the system prompt of the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlt_core.config import (
    EvaluationConfig,
    GenerationConfig,
    ScratchModel,
    SFTConfig,
)
from rlt_core.errors import UserError
from rlt_core.hf_hub import folder_digest
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import RECORD, PromptFormat, load_format, record_format
from rlt_core.stages import (
    EvaluationStageConfig,
    StudentSFTStageConfig,
    TeacherSFTStageConfig,
    TraceGenerationConfig,
)
from rlt_core.store import Manifest, Ref, Store
from tasks.stage import StageContext, context_of
from tests.sample_store import row
from tests.tasks.nodes import committed, node_spec, run, table

FORMAT = load_format("tiny")
OF_DATA = FORMAT.model_copy(update={"student_system": None})
SYSTEM = "Think first.\n"
SFT = SFTConfig(steps=1, batch_size=2, max_tokens=200)


def model_folder(out: Path, format: PromptFormat | None = None) -> None:
    tokenizer = tiny_tokenizer(FORMAT)
    tiny = new_model(ScratchModel(layers=1, width=16, heads=2, seed=0), tokenizer)
    save_model(tiny, tokenizer, out / "model")
    if format:
        record_format(out / "model", format)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("formats") / "store"))


@pytest.fixture(scope="module")
def questions(store: Store) -> Ref:
    rows = [
        row(
            "questions", question_id=f"q{i}", split="train", question=f"{i}+1", solution=f"{i + 1}",
            trace=f"{i}+1={i + 1}", answer=f"{i + 1}", grader="arithmetic", system=SYSTEM,
        )
        for i in range(3)
    ]  # fmt: skip
    return committed(store, Ref(kind="dataset", key="a" * 16), table("questions", rows))


@pytest.fixture(scope="module")
def model(store: Store) -> Ref:
    return committed(store, Ref(kind="model", key="b" * 16), model_folder)


def student(store: Store, model: Ref, questions: Ref, format: PromptFormat) -> Manifest:
    config = StudentSFTStageConfig(
        sft=SFT, traces="dataset", rank=None, n_questions=None, format=format, seed=0
    )
    inputs = {"model": model, "questions": questions, "system": questions}
    return run(node_spec(store, "student-sft", config, inputs))


def teacher(store: Store, model: Ref, questions: Ref) -> Manifest:
    config = TeacherSFTStageConfig(sft=SFT, format=FORMAT, seed=0)
    return run(node_spec(store, "teacher-sft", config, {"model": model, "questions": questions}))


def generation(
    store: Store, writer: Ref, questions: Ref, format: PromptFormat, context: Any, **more: Any
) -> StageContext:
    """A node of trace-generation, not run."""
    config = TraceGenerationConfig(
        sampling=GenerationConfig(n=1), split="train", context=context, format=format, seed=0
    )
    inputs = {"teacher": writer, "questions": questions}
    return context_of(
        node_spec(store, "trace-generation", config, inputs, **more), store, Path(), Progress()
    )


def test_a_students_system_prompt_is_the_datas_to_the_letter(
    store: Store, model: Ref, questions: Ref
) -> None:
    made = student(store, model, questions, OF_DATA)
    recorded = json.loads((store.intact(made) / "model" / RECORD).read_text())
    assert recorded == FORMAT.model_dump(mode="json") | {"student_system": SYSTEM}
    config = StudentSFTStageConfig(
        sft=SFT, traces="dataset", rank=None, n_questions=None, format=OF_DATA, seed=0
    )
    inputs = {"model": made.ref, "questions": questions, "system": questions}
    ctx = context_of(node_spec(store, "student-sft", config, inputs), store, Path(), Progress())
    renderer = ctx.renderer("model", "student")
    text = renderer.tokenizer.decode(renderer.student_prompt("1+1"))
    assert text.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n1+1")


def test_a_model_is_refused_with_another_format_unless_that_is_asked_for(
    store: Store, model: Ref, questions: Ref
) -> None:
    made = teacher(store, model, questions).ref
    other = FORMAT.model_copy(update={"name": "other", "thought_open": "<thought>"})
    generation(store, made, questions, FORMAT, "teacher").renderer("teacher", "teacher")
    wrong = generation(store, made, questions, other, "teacher")
    with pytest.raises(UserError, match=r"with prompt format tiny .* with other, .*thought_open: "):
        wrong.renderer("teacher", "teacher")
    asked = generation(store, made, questions, other, "teacher", allow_other_format=True)
    asked.renderer("teacher", "teacher")
    wrong.renderer("teacher")  # a tokenizer alone
    assert generation(store, model, questions, other, "teacher").renderer("teacher", "teacher")


def test_only_the_system_prompt_of_the_models_role_counts(
    store: Store, model: Ref, questions: Ref
) -> None:
    made = teacher(store, model, questions).ref
    as_student = FORMAT.model_copy(update={"teacher_system": "Explain."})
    as_teacher = FORMAT.model_copy(update={"student_system": "Think.", "name": "renamed"})
    for format, role, refused in (
        (as_student, "student", "teacher"), (as_teacher, "teacher", "student"),
    ):  # fmt: skip
        ctx = generation(store, made, questions, format, role)
        ctx.require_format("teacher", role)
        with pytest.raises(UserError, match=f"differs in {refused}_system: "):
            ctx.require_format("teacher", refused)


def test_every_stage_that_uses_a_model_checks_it(store: Store, questions: Ref) -> None:
    """The body refuses before it computes anything."""
    foreign = FORMAT.model_copy(update={"name": "foreign", "separator": "\n"})
    made = committed(
        store, Ref(kind="model", key="c" * 16), lambda out: model_folder(out, foreign)
    )  # fmt: skip
    sft = StudentSFTStageConfig(
        sft=SFT, traces="dataset", rank=None, n_questions=None, format=FORMAT, seed=0
    )
    evaluation = EvaluationStageConfig(
        evaluation=EvaluationConfig(tasks=("test",)), benchmarks={}, format=FORMAT, seed=0
    )
    inputs = {"model": made, "questions": questions}
    for stage, config in (
        ("student-sft", sft), ("evaluation", evaluation),
        ("teacher-sft", TeacherSFTStageConfig(sft=SFT, format=FORMAT, seed=0)),
    ):  # fmt: skip
        with pytest.raises(UserError, match="differs in separator"):
            run(node_spec(store, stage, config, inputs))
    named = evaluation.model_copy(update={"format_named": True})
    ctx = context_of(node_spec(store, "evaluation", named, inputs), store, Path(), Progress())
    ctx.require_format("model", "student")


def test_the_record_is_part_of_a_folders_content(tmp_path: Path) -> None:
    model_folder(tmp_path)
    before = folder_digest(tmp_path / "model")
    record_format(tmp_path / "model", FORMAT)
    assert folder_digest(tmp_path / "model") != before
