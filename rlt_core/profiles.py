"""Profiles: functions that return a whole config. `paper-*` holds the paper's every number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlt_core.config import (
    BudgetForcing,
    Config,
    DataConfig,
    EvaluationConfig,
    FieldMapping,
    GenerationConfig,
    HubModel,
    LargerStudent,
    LoRA,
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

QWEN_1_5B = HubModel(
    repo="Qwen/Qwen2.5-1.5B-Instruct", revision="989aa7980e4cf806f80c7fef2b1adb7bc71aa306"
)
QWEN_7B = HubModel(
    repo="Qwen/Qwen2.5-7B-Instruct", revision="a09a35458c702b33eeacc393d103063234e8bc28"
)
QWEN_32B = HubModel(
    repo="Qwen/Qwen2.5-32B-Instruct", revision="5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd"
)
QWEN_3B = HubModel(repo="Qwen/Qwen2.5-3B-Instruct")
SMOLLM2_360M = HubModel(repo="HuggingFaceTB/SmolLM2-360M-Instruct")
STRATOS_7B = HubModel(repo="bespokelabs/Bespoke-Stratos-7B")
S1_RECIPE = StudentSFTConfig(
    epochs=5, batch_size=16, learning_rate=1e-5, warmup_ratio=0.05, beta2=0.95, weight_decay=1e-4,
    max_tokens=16384, dtype="bfloat16", n_questions=1000,
)  # fmt: skip
"""Students of a random 1,000 questions."""


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
        student_sft_subset=student.model_copy(update={"n_questions": 60}),
        larger_student=LargerStudent(
            model=ScratchModel(
                layers=4, width=160, heads=5, steps=900, batch_size=16, learning_rate=2e-3
            )
        ),
        trace_sources={
            "s1": TraceSource(
                data=other.model_copy(update={"source": "arithmetic-s1", "n_train": 100}),
                budget=BudgetForcing(max_thinking_tokens=80, continuations=1, continuation=";"),
            ),
            "sky-t1": TraceSource(
                data=other.model_copy(update={"source": "arithmetic-sky-t1", "n_train": 1200})
            ),
        },
        countdown=DataConfig(
            source="countdown-small", n_train=1600, n_validation=0, n_test=100,
            max_prompt_tokens=200,
        ),
        student_grpo=StudentGRPOConfig(
            steps=20, questions_per_step=16, group_size=8, learning_rate=1e-4, temperature=1.0,
            max_prompt_tokens=200, max_completion_tokens=96,
        ),
        evaluation=EvaluationConfig(
            tasks=("test", "countdown"), n=4, temperature=0.7, max_tokens=96, max_questions=200,
            pass_at=(4,),
        ),
        resources=Resources(tokens_per_batch=65536, nodes_per_run=8),
    )  # fmt: skip


def smoke() -> Config:
    """Every stage on a barely trained tiny model, in a minute: for tests, learns nothing."""
    config = tiny()
    student = config.student_sft.model_copy(update={"steps": 3, "batch_size": 4})
    return config.model_copy(
        update={
            "profile": "smoke",
            "data": config.data.model_copy(
                update={"n_train": 24, "n_validation": 4, "n_test": 6}
            ),
            "base_model": ScratchModel(layers=1, width=32, heads=2, steps=3, batch_size=8),
            "teacher_sft": config.teacher_sft.model_copy(update={"steps": 3, "batch_size": 8}),
            "teacher_grpo": config.teacher_grpo.model_copy(
                update={
                    "steps": 3, "questions_per_step": 2, "group_size": 4,
                    "max_completion_tokens": 24,
                    "reference_sync": ReferenceSync(every_steps=2),
                }
            ),
            "trace_generation": config.trace_generation.model_copy(
                update={"max_tokens": 24, "n_questions": 8}
            ),
            "rank_ablation": RankAblationConfig(ranks=2, n_questions=8, resamples=200),
            "reward_ablation": RewardAblationConfig(kl_weights=(1.0,), alphas=()),
            "student_sft": student,
            "student_sft_subset": student.model_copy(update={"n_questions": 4}),
            "larger_student": LargerStudent(
                model=ScratchModel(layers=1, width=48, heads=2, steps=3, batch_size=8), traces=2
            ),
            "trace_sources": {
                name: source.model_copy(
                    update={"data": source.data.model_copy(update={"n_train": 12})}
                )
                for name, source in config.trace_sources.items()
            },
            "countdown": DataConfig(
                source="countdown-small", n_train=16, n_validation=0, n_test=6,
                max_prompt_tokens=200,
            ),
            "student_grpo": StudentGRPOConfig(
                steps=2, questions_per_step=2, group_size=2, learning_rate=1e-4, temperature=1.0,
                max_prompt_tokens=200, max_completion_tokens=24,
            ),
            "evaluation": EvaluationConfig(
                tasks=("test", "countdown"), temperature=0.7, max_tokens=24, max_questions=6
            ),
            "resources": Resources(
                checkpoint_every_steps=1, shard_questions=2, nodes_per_run=8
            ),
        }
    )  # fmt: skip


def smol() -> Config:
    """SmolLM2-135M-Instruct on anybody's questions: a real language model end to end."""
    student = StudentSFTConfig(
        epochs=3, batch_size=4, learning_rate=1e-5, warmup_ratio=0.1, max_tokens=2048
    )
    return Config(
        profile="smol",
        prompt_format="rlt",
        data=DataConfig(
            source="questions.jsonl", n_validation=4, n_test=8, max_prompt_tokens=1024
        ),
        base_model=PackageModel(),
        teacher_sft=TeacherSFTConfig(
            epochs=1, batch_size=4, learning_rate=1e-5, warmup_ratio=0.05, max_tokens=2048,
            beta2=0.95, weight_decay=1e-4,
        ),
        teacher_grpo=TeacherGRPOConfig(
            steps=20, questions_per_step=4, group_size=8, learning_rate=1e-6,
            max_prompt_tokens=1024, max_completion_tokens=512,
            reference_sync=ReferenceSync(),
        ),
        trace_generation=GenerationConfig(max_tokens=512),
        trace_scoring=ScoringConfig(max_tokens=4096),
        rank_ablation=RankAblationConfig(ranks=4),
        student_sft=student,
        student_sft_subset=student.model_copy(update={"n_questions": 100}),
        larger_student=LargerStudent(model=SMOLLM2_360M),
        countdown=DataConfig(
            source="countdown", n_train=400, n_validation=0, n_test=100, max_prompt_tokens=1024
        ),
        student_grpo=StudentGRPOConfig(
            steps=20, questions_per_step=4, group_size=8, max_prompt_tokens=1024,
            max_completion_tokens=512,
        ),
        evaluation=EvaluationConfig(n=1, max_tokens=512),
        resources=Resources(
            threads=2, micro_batch_size=4, tokens_per_batch=8192, shard_questions=8,
            checkpoint_every_steps=10,
        ),
    )  # fmt: skip


def single_gpu() -> Config:
    """Qwen2.5-1.5B-Instruct on one 24-80 GB card; LoRA for students, full for the teacher."""
    config = _paper("single-gpu", QWEN_1_5B)
    grpo: dict[str, Any] = {
        "steps": 125, "questions_per_step": 8, "group_size": 16, "dtype": "bfloat16",
        "max_prompt_tokens": 2048, "max_completion_tokens": 2048,
    }  # fmt: skip
    lora = LoRA()
    student = config.student_sft.model_copy(
        update={"max_tokens": 4096, "batch_size": 16, "lora": lora, "learning_rate": 1e-4}
    )
    return config.model_copy(
        update={
            "data": DataConfig(source="questions.jsonl", max_prompt_tokens=2048),
            "rl_data": None,
            "teacher_sft": config.teacher_sft.model_copy(
                update={"epochs": 3, "max_tokens": 4096}
            ),
            "teacher_grpo": config.teacher_grpo.model_copy(update=grpo),
            "trace_generation": config.trace_generation.model_copy(update={"max_tokens": 2048}),
            "trace_scoring": ScoringConfig(dtype="bfloat16", max_tokens=8192),
            "rank_ablation": RankAblationConfig(in_full_pipeline=False),
            "student_sft": student,
            "student_sft_subset": student.model_copy(update={"n_questions": 1000}),
            "larger_student": LargerStudent(model=QWEN_3B),
            "countdown": countdown(2048),
            "student_grpo": StudentGRPOConfig(**grpo, lora=lora, learning_rate=1e-5),
            "evaluation": config.evaluation.model_copy(
                update={"tasks": ("test", "math_500"), "max_tokens": 4096, "n": 4}
            ),
            "resources": Resources(
                engine="vllm", micro_batch_size=2, gradient_checkpointing=True,
                tokens_per_batch=65536,
            ),
        }
    )  # fmt: skip


def countdown(max_prompt_tokens: int) -> DataConfig:
    """The paper's 16K and 1K problems."""
    return DataConfig(
        source="countdown", n_train=16_000, n_validation=0, n_test=1000,
        max_prompt_tokens=max_prompt_tokens,
    )  # fmt: skip


def _trace_sources() -> dict[str, TraceSource]:
    """The sets of s1 and Sky-T1; how far thinking is forced at the test is ours."""
    whole = DataConfig(n_validation=0, n_test=0, near_duplicate=None, overlap="report")
    s1 = {"source": "hub:simplescaling/s1K",
          "fields": FieldMapping(solution="attempt", trace="thinking_trajectories")}  # fmt: skip
    sky_t1 = {"source": "hub:NovaSky-AI/Sky-T1_data_17k", "conversations": True,
              "fields": FieldMapping(trace="conversations")}  # fmt: skip
    return {
        "s1": TraceSource(
            data=whole.model_copy(update=s1),
            budget=BudgetForcing(max_thinking_tokens=24_000, continuations=2),
        ),
        "sky-t1": TraceSource(data=whole.model_copy(update=sky_t1)),
    }


def _paper(profile: str, student: HubModel, teacher: HubModel = QWEN_7B) -> Config:
    """The paper's recipe; the teacher is 7B and the students are of either size."""
    if profile == "single-gpu":
        teacher = student
    return Config(
        profile=profile,
        prompt_format="rlt",
        data=DataConfig(
            source="hub:bespokelabs/Bespoke-Stratos-17k",
            conversations=True,
            fields=FieldMapping(trace="conversations"),
            n_validation=64,
            n_test=0,
            near_duplicate=None,
            overlap="report",
        ),
        rl_data=DataConfig(
            source="hub:GAIR/LIMR",
            fields=FieldMapping(question="prompt", solution="answer", answer="answer"),
            n_validation=0,
            n_test=0,
            near_duplicate=None,
            overlap="report",
        ),
        base_model=teacher,
        reward_student=None if profile == "single-gpu" else STRATOS_7B,
        student=student,
        teacher_sft=TeacherSFTConfig(
            epochs=10, batch_size=16, learning_rate=1e-5, warmup_ratio=0.05, beta2=0.95,
            weight_decay=1e-4, max_tokens=16384, dtype="bfloat16",
        ),
        teacher_grpo=TeacherGRPOConfig(
            steps=125, questions_per_step=16, group_size=64, learning_rate=1e-6, beta=0.04,
            temperature=0.7, max_prompt_tokens=16384, max_completion_tokens=16384,
            reference_sync=ReferenceSync(every_steps=32, alpha=0.9), dtype="bfloat16",
        ),
        reward=RewardSpec(alpha=0.01, kl_weight=3.0, temperature=0.7),
        trace_generation=GenerationConfig(temperature=0.7, max_tokens=16384, dtype="bfloat16"),
        trace_scoring=ScoringConfig(dtype="bfloat16", max_tokens=32768),
        rank_ablation=RankAblationConfig(ranks=16),
        student_sft=StudentSFTConfig(
            epochs=3, batch_size=96, learning_rate=1e-5, warmup_ratio=0.1, max_tokens=16384,
            dtype="bfloat16",
        ),
        student_sft_subset=S1_RECIPE,
        larger_student=None if student is QWEN_32B else LargerStudent(model=QWEN_32B),
        trace_sources=_trace_sources(),
        countdown=countdown(16384),
        student_grpo=StudentGRPOConfig(
            epochs=1, questions_per_step=16, group_size=64, learning_rate=1e-6,
            max_prompt_tokens=16384, max_completion_tokens=16384,
            reference_sync=ReferenceSync(every_steps=32, alpha=0.9), dtype="bfloat16",
        ),
        evaluation=EvaluationConfig(
            tasks=("aime24", "math_500", "gpqa_diamond"), n=4, temperature=0.7, max_tokens=32768,
            dtype="bfloat16",
        ),
        resources=Resources(
            engine="vllm", micro_batch_size=1, gradient_checkpointing=True,
            tokens_per_batch=262144,
        ),
    )  # fmt: skip


def _on_1k(config: Config, profile: str) -> Config:
    """The paper's 1K variant everywhere."""
    subset = {"student_sft": S1_RECIPE, "student_sft_subset": None}
    return config.model_copy(update={"profile": profile, **subset})


def paper_7b() -> Config:
    """The paper's 7B students on 17K questions."""
    return _paper("paper-7b", QWEN_7B)


def paper_32b() -> Config:
    """The paper's 32B students of the 7B teacher, on 17K questions."""
    return _paper("paper-32b", QWEN_32B)


PROFILES: dict[str, Callable[[], Config]] = {
    "smoke": smoke,
    "tiny": tiny,
    "smol": smol,
    "single-gpu": single_gpu,
    "paper-7b": paper_7b,
    "paper-7b-1k": lambda: _on_1k(paper_7b(), "paper-7b-1k"),
    "paper-32b": paper_32b,
    "paper-32b-1k": lambda: _on_1k(paper_32b(), "paper-32b-1k"),
}
