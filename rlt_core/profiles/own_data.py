"""Language models on a user's own questions."""

from typing import Any

from rlt_core.config import (
    Config,
    CountdownConfig,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    HubModel,
    LargerStudent,
    LoRA,
    PackageModel,
    RankAblationConfig,
    Resources,
    RewardSpec,
    ScoringConfig,
    StudentGRPOConfig,
    StudentSFTConfig,
    TeacherGRPOConfig,
    TeacherSFTConfig,
)
from rlt_core.profiles.paper import countdown, recipe, trace_sources

QWEN_1_5B = HubModel(
    repo="Qwen/Qwen2.5-1.5B-Instruct", revision="989aa7980e4cf806f80c7fef2b1adb7bc71aa306"
)
QWEN_3B = HubModel(repo="Qwen/Qwen2.5-3B-Instruct")
SMOLLM2_360M = HubModel(repo="HuggingFaceTB/SmolLM2-360M-Instruct")


def laptop() -> Config:
    """SmolLM2-135M-Instruct on anybody's questions, on two cores: a real language model end to end.

    LoRA, bfloat16 and checkpointed activations keep memory low. The numbers are for a look at every
    stage in minutes, not for a result.
    """
    training: dict[str, Any] = {"lora": LoRA(), "dtype": "bfloat16", "learning_rate": 2e-4}
    sampling: dict[str, Any] = {"max_tokens": 160, "dtype": "bfloat16"}
    student = StudentSFTConfig(epochs=1, batch_size=8, warmup_ratio=0.1, max_tokens=640, **training)
    grpo: dict[str, Any] = {
        "steps": 4, "questions_per_step": 1, "group_size": 4, "max_prompt_tokens": 480,
        "max_completion_tokens": 160, **training, "learning_rate": 5e-5,
    }  # fmt: skip
    return Config(
        profile="laptop",
        prompt_format="rlt",
        data=DataConfig(
            source="questions.jsonl", n_train=32, n_validation=2, n_test=16, max_prompt_tokens=480
        ),
        base_model=PackageModel(),
        teacher_sft=TeacherSFTConfig(
            epochs=1, batch_size=8, warmup_ratio=0.1, max_tokens=640, **training
        ),
        teacher_grpo=TeacherGRPOConfig(**grpo),
        trace_generation=GenerationConfig(**sampling),
        trace_scoring=ScoringConfig(max_tokens=2048, dtype="bfloat16"),
        rank_ablation=RankAblationConfig(ranks=4, in_full_pipeline=False),
        student_sft=student,
        student_sft_subset=student.replaced(n_questions=16),
        larger_student=LargerStudent(model=SMOLLM2_360M),
        countdown=CountdownConfig(
            data=DataConfig(
                source="countdown", n_train=32, n_validation=0, n_test=16, max_prompt_tokens=480
            )
        ),
        student_grpo=StudentGRPOConfig(**grpo),
        evaluation=EvaluationConfig(n=1, **sampling),
        resources=Resources(
            threads=2, micro_batch_size=1, gradient_checkpointing=True, tokens_per_batch=2048,
            shard_questions=16,
            checkpoint_every_steps=2,
            rollouts_every_steps=2,
        ),
    )  # fmt: skip


def teach() -> Config:
    """The base of `rlt teach`: two models and a file of questions; what is trained here is not
    used."""
    config = laptop()
    sampling: dict[str, Any] = {"max_tokens": 1024, "dtype": "bfloat16"}
    return config.replaced(
        profile="teach",
        data=DataConfig(
            source="questions.jsonl", n_validation=0, n_test=0, max_prompt_tokens=2048,
            max_dropped=1.0, near_duplicate=None,
        ),
        teacher_sft=config.teacher_sft.replaced(traces="none"),
        reward=RewardSpec(alignment="text"),
        trace_generation=GenerationConfig(n=16, **sampling),
        resources=Resources(threads=2, tokens_per_batch=16384, shard_questions=4),
    )  # fmt: skip


def single_gpu() -> Config:
    """Qwen2.5-1.5B-Instruct on one 48-80 GB card; LoRA for students, full for the teacher."""
    config = recipe("single-gpu", QWEN_1_5B)
    grpo: dict[str, Any] = {
        "steps": 125, "questions_per_step": 8, "group_size": 16, "dtype": "bfloat16",
        "max_prompt_tokens": 2048, "max_completion_tokens": 2048,
    }  # fmt: skip
    lora = LoRA()
    student = config.student_sft.replaced(
        max_tokens=4096, batch_size=16, lora=lora, learning_rate=1e-4
    )
    return config.replaced(
        data=DataConfig(source="questions.jsonl", max_prompt_tokens=2048),
        rl_data=None,
        base_model=QWEN_1_5B,
        reward_student=None,
        teacher_sft=config.teacher_sft.replaced(epochs=3, max_tokens=4096),
        teacher_grpo=config.teacher_grpo.replaced(**grpo),
        trace_generation=config.trace_generation.replaced(max_tokens=2048),
        trace_scoring=ScoringConfig(dtype="bfloat16", max_tokens=8192),
        student_sft=student,
        student_sft_subset=student.replaced(n_questions=1000),
        larger_student=LargerStudent(model=QWEN_3B),
        trace_sources=trace_sources(3000),
        countdown=countdown(2048),
        student_grpo=StudentGRPOConfig(**grpo, lora=lora, learning_rate=1e-5),
        evaluation=EvaluationConfig(
            tasks=("test", "math_500"), n=4, max_tokens=4096, dtype="bfloat16"
        ),
        resources=Resources(
            engine="vllm",
            micro_batch_size=2,
            gradient_checkpointing=True,
            tokens_per_batch=32768,
            rollouts_every_steps=25,
            stages={
                "teacher-grpo": {"vllm_memory": 0.4, "offload": True},
                "student-grpo": {"vllm_memory": 0.4},
            },
        ),
    )
