"""Small models on generated problems, for a CPU."""

from typing import Any

from rlt_core.config import (
    BudgetForcing,
    Config,
    CountdownConfig,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    LargerStudent,
    PackageModel,
    RankAblationConfig,
    ReferenceSync,
    Resources,
    RewardAblationConfig,
    RewardSpec,
    ScoringConfig,
    ScratchModel,
    StudentGRPOConfig,
    StudentSFTConfig,
    TeacherGRPOConfig,
    TeacherSFTConfig,
    TraceSource,
)
from rlt_core.profiles.paper import S1_CONTINUATIONS


def tiny() -> Config:
    """A 0.35M-parameter model on generated arithmetic: every stage learns, in minutes on a CPU."""
    student = StudentSFTConfig(
        steps=60, batch_size=32, learning_rate=1e-3, warmup_ratio=0.1, max_tokens=256
    )
    other = DataConfig(n_validation=0, n_test=0, max_prompt_tokens=200)
    return Config(
        profile="tiny",
        prompt_format="tiny",
        data=DataConfig(
            source="arithmetic", n_train=1200, n_validation=96, n_test=200, max_prompt_tokens=200
        ),
        base_model=ScratchModel(steps=900, batch_size=16, learning_rate=3e-3),
        teacher_sft=TeacherSFTConfig(
            steps=150, batch_size=32, learning_rate=1e-3, warmup_ratio=0.05, max_tokens=256
        ),
        teacher_grpo=TeacherGRPOConfig(
            steps=40, questions_per_step=16, group_size=16, learning_rate=1e-4, temperature=1.0,
            max_prompt_tokens=200, max_completion_tokens=96,
            reference_sync=ReferenceSync(every_steps=32),
        ),
        reward=RewardSpec(temperature=1.0),
        trace_generation=GenerationConfig(n=1, temperature=1.0, max_tokens=96, n_questions=300),
        trace_scoring=ScoringConfig(max_tokens=512),
        rank_ablation=RankAblationConfig(ranks=16, n_questions=300),
        student_sft=student,
        student_sft_subset=student.replaced(n_questions=60),
        larger_student=LargerStudent(
            model=ScratchModel(
                layers=4, width=160, heads=5, steps=900, batch_size=16, learning_rate=2e-3
            )
        ),
        trace_sources={
            "s1": TraceSource(
                data=other.replaced(source="arithmetic-s1", n_train=100),
                budgets=tuple(
                    BudgetForcing(max_thinking_tokens=80, continuations=times, continuation=";")
                    for times in S1_CONTINUATIONS
                ),
            ),
            "sky-t1": TraceSource(
                data=other.replaced(source="arithmetic-sky-t1", n_train=1200)
            ),
        },
        countdown=CountdownConfig(
            data=other.replaced(source="countdown-small", n_train=4000, n_test=100),
            student_sft=student.replaced(steps=400),
        ),
        student_grpo=StudentGRPOConfig(
            steps=20, questions_per_step=16, group_size=8, learning_rate=1e-4, temperature=1.0,
            max_prompt_tokens=200, max_completion_tokens=96,
        ),
        evaluation=EvaluationConfig(
            tasks=("test", "countdown"), n=4, temperature=0.7, max_tokens=96, max_questions=200,
            pass_at=(4,),
        ),
        resources=Resources(tokens_per_batch=65536, nodes_per_run=8, rollouts_every_steps=10),
    )  # fmt: skip


def tiny_science() -> Config:
    """`tiny` for the paper's claims (`studies/paper.toml`): all students learn from the same
    questions, the teacher has twice the steps of RL, and there is no more than the claims need."""
    config = tiny()
    return config.replaced(
        profile="tiny-science",
        teacher_grpo=config.teacher_grpo.replaced(steps=80),
        trace_generation=config.trace_generation.replaced(n_questions=None),
        rank_ablation=RankAblationConfig(n_questions=300, sets=("reward", "random")),
        student_sft_subset=None,
        larger_student=None,
        trace_sources={},
        evaluation=config.evaluation.replaced(tasks=("test",)),
    )


def smoke() -> Config:
    """Every stage on a barely trained tiny model, in a minute: for tests, learns nothing."""
    config = tiny()
    student = config.student_sft.replaced(steps=3, batch_size=4)
    return config.replaced(
        profile="smoke",
        data=config.data.replaced(n_train=24, n_validation=4, n_test=6),
        base_model=ScratchModel(layers=1, width=32, heads=2, steps=3, batch_size=8),
        teacher_sft=config.teacher_sft.replaced(steps=3, batch_size=8),
        teacher_grpo=config.teacher_grpo.replaced(
            steps=3,
            questions_per_step=2,
            group_size=4,
            max_completion_tokens=24,
            reference_sync=ReferenceSync(every_steps=2),
        ),
        trace_generation=config.trace_generation.replaced(max_tokens=24, n_questions=8),
        rank_ablation=RankAblationConfig(
            ranks=2, n_questions=8, resamples=200, sets=("reward", "random", "token-matched")
        ),
        reward_ablation=RewardAblationConfig(kl_weights=(1.0,), alphas=()),
        student_sft=student,
        student_sft_subset=student.replaced(n_questions=4),
        larger_student=LargerStudent(
            model=ScratchModel(layers=1, width=48, heads=2, steps=3, batch_size=8), traces=2
        ),
        trace_sources={
            name: source.replaced(data=source.data.replaced(n_train=12))
            for name, source in config.trace_sources.items()
        },
        countdown=CountdownConfig(
            data=DataConfig(
                source="countdown-small",
                n_train=16,
                n_validation=0,
                n_test=6,
                max_prompt_tokens=200,
            )
        ),
        student_grpo=StudentGRPOConfig(
            steps=2,
            questions_per_step=2,
            group_size=2,
            learning_rate=1e-4,
            temperature=1.0,
            max_prompt_tokens=200,
            max_completion_tokens=24,
        ),
        evaluation=EvaluationConfig(
            tasks=("test", "countdown"), temperature=0.7, max_tokens=24, max_questions=6
        ),
        resources=Resources(
            checkpoint_every_steps=1, shard_questions=2, nodes_per_run=8, rollouts_every_steps=2
        ),
    )


def smol_science() -> Config:
    """SmolLM2-135M-Instruct on running totals in words: the full pipeline, `rank-ablation` and
    `table-1` (with perfect traces, and solutions alone), sized for 90 minutes per seed."""
    sft: dict[str, Any] = {
        "epochs": 2, "batch_size": 8, "learning_rate": 1e-4, "warmup_ratio": 0.1, "beta2": 0.95,
        "max_tokens": 256, "dtype": "bfloat16",
    }  # fmt: skip
    grpo: dict[str, Any] = {
        "questions_per_step": 8, "group_size": 8, "learning_rate": 3e-5, "beta": 0.0,
        "temperature": 0.7, "max_prompt_tokens": 160, "max_completion_tokens": 96,
        "dtype": "bfloat16",
    }  # fmt: skip
    sampling: dict[str, Any] = {"max_tokens": 96, "dtype": "bfloat16"}
    data = DataConfig(
        source="running-totals", n_train=160, n_validation=32, n_test=300, max_prompt_tokens=160
    )
    return Config(
        profile="smol-science",
        prompt_format="brief",
        data=data,
        base_model=PackageModel(),
        reward_student_sft=True,
        teacher_sft=TeacherSFTConfig(**sft),
        teacher_grpo=TeacherGRPOConfig(steps=30, **grpo),
        trace_generation=GenerationConfig(**sampling),
        trace_scoring=ScoringConfig(max_tokens=512, dtype="bfloat16"),
        rank_ablation=RankAblationConfig(ranks=8, sets=("reward",)),
        student_sft=StudentSFTConfig(**sft),
        trace_sources={
            "perfect": TraceSource(
                data=data.replaced(source="running-totals-perfect", n_validation=0, n_test=0)
            )
        },
        countdown=CountdownConfig(
            data=data.replaced(source="countdown", n_validation=0, n_test=100)
        ),
        student_grpo=StudentGRPOConfig(steps=10, **grpo),
        evaluation=EvaluationConfig(temperature=0.0, **sampling),
        resources=Resources(
            micro_batch_size=8, tokens_per_batch=10240, checkpoint_every_steps=20,
            rollouts_every_steps=5,
            stages={
                "teacher-grpo": {"checkpoint_every_steps": 5},
                "student-grpo": {"checkpoint_every_steps": 5},
            },
        ),
    )  # fmt: skip
