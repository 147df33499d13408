"""The paper's claims with a real language model, small enough for two CPU cores."""

from typing import Any

from rlt_core.config import (
    Config,
    CountdownConfig,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    PackageModel,
    RankAblationConfig,
    Resources,
    ScoringConfig,
    StudentGRPOConfig,
    StudentSFTConfig,
    TeacherGRPOConfig,
    TeacherSFTConfig,
    TraceSource,
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
