"""Unknown names and wrong types are refused with the field and the mend."""

from __future__ import annotations

import pytest

from rlt_core.config import Config, HubModel
from rlt_core.errors import UserError
from rlt_core.overrides import load_config
from rlt_core.profiles import PROFILES


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_survives_its_own_json(profile: str) -> None:
    config = load_config(profile)
    assert config.profile == profile
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("techer_grpo.learning_rate=1", "teacher_grpo"),
        ("teacher_grpo.learnin_rate=1", "learning_rate"),
        ("teacher_grpo.learning_rate=x", r"teacher_grpo\.learning_rate.*number"),
        ("data.n_train=-1", r"data\.n_train"),
        ("seeds=[]", "seeds"),
        ("seeds=[1,1]", "seeds"),
        ("seeds=[-1]", r"seeds\.0.*greater than or equal to 0"),
        ("data.seed=4294967296", r"data\.seed"),
        ("teacher_grpo.lora.rank=4", "reference_sync"),
        ("student_grpo.lora.dropout=0.1", "without dropout"),
        ("teacher_sft.epochs=3", "exactly one"),
        (
            "resources.stages.base-model.thread=1",
            r"resources\.stages\.base-model\.thread'.*threads",
        ),
        ("resources.stages.base-model.threads=x", r"resources\.stages\.base-model\.threads: .*'x'"),
        ("resources.stages.base-model.engine=x", r"resources\.stages\.base-model\.engine: .*vllm"),
        ("seeds=0,1", r"seeds: write a list, as --set 'seeds=\[…\]' \(given: '0,1'\)"),
        ("evaluation.tasks=test", r"evaluation\.tasks: write a list"),
        (
            "teacher_grpo=5",
            r"teacher_grpo: it has fields; .*teacher_grpo\.learning_rate=… \(given: 5",
        ),
        ("base_model=somewhere", "hub:org/name"),
        ("base_model=hub:a/b@main", "revision"),
        ("evaluation.revisions.aime24=main", r"evaluation\.revisions\.aime24"),
        (f"evaluation.revisions.aime24={'0' * 40}", "aime24, not among `tasks`"),
        ("trace_sources.mine.recip=student_sft", "recipe"),
        ("data", "field.name=value"),
        ("profile=smoke", "--profile"),
    ],
)
def test_a_bad_assignment_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config("tiny", [assignment])
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(UserError, match="'tiny'"):
        load_config("tinny")


def test_assignments_reach_their_fields() -> None:
    config = load_config(
        "tiny",
        [
            "seeds=[0,1]", "teacher_grpo.learning_rate=2e-6", "base_model=hub:a/b",
            "student_grpo=null", "data.source=my file.jsonl", "data.fields.solution=answer",
            "imports.models.other=folder:/x", "resources.stages.base-model.threads=1",
            'evaluation.tasks=["aime24"]', f"evaluation.revisions.aime24={'0' * 40}",
            "trace_sources.mine.data.source=theirs.jsonl",
        ],
    )  # fmt: skip
    assert config.seeds == (0, 1)
    assert config.teacher_grpo.learning_rate == 2e-6
    assert config.base_model == HubModel(repo="a/b")
    assert config.student_grpo is None
    assert config.data.source == "my file.jsonl"
    assert config.data.fields.solution == "answer"
    assert config.resources.of("base-model").threads == 1
    assert config.evaluation.revisions == {"aime24": "0" * 40}
    assert config.trace_sources["mine"].data.source == "theirs.jsonl"


def test_the_paper_profiles_hold_the_papers_numbers() -> None:
    config = load_config("paper-7b")
    grpo, sft, student = config.teacher_grpo, config.teacher_sft, config.student_sft
    assert (grpo.steps, grpo.questions_per_step, grpo.group_size) == (125, 16, 64)
    assert (grpo.learning_rate, grpo.schedule, grpo.beta, grpo.temperature) == (
        1e-6, "constant", 0.04, 0.7,
    )  # fmt: skip
    assert (grpo.max_prompt_tokens, grpo.max_completion_tokens) == (16384, 16384)
    assert grpo.reference_sync and grpo.reference_sync.every_steps == 32
    assert grpo.reference_sync.alpha == 0.9
    assert (grpo.beta1, grpo.beta2, grpo.weight_decay, grpo.max_grad_norm) == (0.9, 0.999, 0, 1)
    assert (sft.epochs, sft.batch_size, sft.learning_rate, sft.warmup_ratio) == (10, 16, 1e-5, 0.05)
    assert (sft.beta2, sft.weight_decay, sft.schedule) == (0.95, 1e-4, "cosine")
    assert (student.epochs, student.batch_size, student.warmup_ratio) == (3, 96, 0.1)
    assert (config.reward.alpha, config.reward.kl_weight, config.reward.temperature) == (
        0.01, 3.0, 0.7,
    )  # fmt: skip
    small = load_config("paper-32b-1k").student_sft
    assert (small.n_questions, small.epochs, small.batch_size) == (1000, 5, 16)
    assert (small.warmup_ratio, small.weight_decay, small.beta2) == (0.05, 1e-4, 0.95)
    rl = config.student_grpo
    assert rl and (rl.epochs, rl.questions_per_step * rl.group_size) == (1, 1024)
    assert (rl.reward.unformatted, rl.reward.wrong, rl.reward.correct) == (-1, -0.5, 1)
    assert config.rl_data and config.rl_data.source == "hub:GAIR/LIMR"


def test_nodes_of_a_variant_may_have_resources_of_their_own() -> None:
    config = load_config("tiny", [
        "resources.stages.student-sft:*-large*.machines=2",
        "resources.stages.student-sft.threads=3",
    ])  # fmt: skip
    large = config.resources.of("student-sft", "rlt-large-subset")
    assert (large.machines, large.threads) == (2, 3)
    other = config.resources.of("student-sft", "rlt")
    assert (other.machines, other.threads) == (1, 3)
    assert config.resources.of("teacher-sft", "rlt-large").machines == 1


def test_a_stage_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"resources\.stages\.student-stf.*'student-sft'"):
        load_config("tiny", ["resources.stages.student-stf.threads=2"])
    with pytest.raises(UserError, match="unknown stage"):
        load_config("tiny", ["resources.stages.evaluate:*large*.threads=2"])
