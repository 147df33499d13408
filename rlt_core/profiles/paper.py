"""The paper's recipes, number for number (arXiv 2506.08388, appendix; the authors' code)."""

from typing import Any

from rlt_core.config import (
    BudgetForcing,
    Config,
    CountdownConfig,
    DataConfig,
    EvaluationConfig,
    FieldMapping,
    GenerationConfig,
    HubModel,
    LargerStudent,
    RankAblationConfig,
    ReferenceSync,
    Resources,
    RewardSpec,
    ScoringConfig,
    StudentGRPOConfig,
    StudentSFTConfig,
    TeacherGRPOConfig,
    TeacherSFTConfig,
    TraceSource,
)

QWEN_7B = HubModel(
    repo="Qwen/Qwen2.5-7B-Instruct", revision="a09a35458c702b33eeacc393d103063234e8bc28"
)
QWEN_32B = HubModel(
    repo="Qwen/Qwen2.5-32B-Instruct", revision="5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd"
)
STRATOS_7B = HubModel(repo="bespokelabs/Bespoke-Stratos-7B")
STRATOS_17K = DataConfig(
    source="hub:bespokelabs/Bespoke-Stratos-17k",
    conversations=True,
    fields=FieldMapping(trace="conversations", system="system"),
    n_validation=64,
    n_test=0,
    near_duplicate=None,
    overlap="report",
)
"""Questions, solutions and traces of everything but the RL cold-start."""
LIMR = DataConfig(
    source="hub:GAIR/LIMR",
    fields=FieldMapping(question="prompt", solution="answer", answer="answer"),
    n_validation=0,
    n_test=0,
    near_duplicate=None,
    overlap="report",
)
"""Questions of the RL cold-start."""
S1_RECIPE = StudentSFTConfig(
    epochs=5, batch_size=16, learning_rate=1e-5, warmup_ratio=0.05, beta2=0.95, weight_decay=1e-4,
    max_tokens=16384, dtype="bfloat16", n_questions=1000,
)  # fmt: skip
"""Students of a random 1,000 questions."""

EVALUATION = EvaluationConfig(
    tasks=("aime24", "math_500", "gpqa_diamond"), n=4, samples={"aime24": 64, "gpqa_diamond": 8},
    temperature=0.6, top_p=0.95, max_tokens=32768, dtype="bfloat16", prompts="skythought",
)  # fmt: skip
"""Ours: the paper does not say how it sampled, and names lighteval while its repository names
SkyThought, whose instruction its training questions carry. SkyThought's command line samples
greedily, its examples for Sky-T1 as here. Temperature, top-p, length and AIME24's 64 are those
of DeepSeek-R1 (https://github.com/deepseek-ai/DeepSeek-R1, section 4), whose distilled students
start from Qwen2.5, too. At 20% right, chance in sampling moves AIME24's 30 questions by a standard
error of at most 7.3 points with one completion each, 3.7 with 4, 0.9 with 64."""
S1_CONTINUATIONS = (1, 2, 4, 6)
"""How often s1's students are made to think on, a row each: s1 (arXiv 2501.19393) tries several,
and the paper does not say which number is its row's."""


def countdown(max_prompt_tokens: int) -> CountdownConfig:
    """The paper's 16K and 1K problems."""
    data = DataConfig(
        source="countdown", n_train=16_000, n_validation=0, n_test=1000,
        max_prompt_tokens=max_prompt_tokens,
    )  # fmt: skip
    return CountdownConfig(data=data)


def trace_sources(max_thinking_tokens: int) -> dict[str, TraceSource]:
    """The sets of s1 and Sky-T1; how far thinking is forced at the test is ours."""
    whole = DataConfig(n_validation=0, n_test=0, near_duplicate=None, overlap="report")
    s1 = {"source": "hub:simplescaling/s1K",
          "fields": FieldMapping(solution="attempt", trace="thinking_trajectories")}  # fmt: skip
    sky_t1 = {"source": "hub:NovaSky-AI/Sky-T1_data_17k", "conversations": True,
              "fields": FieldMapping(trace="conversations")}  # fmt: skip
    return {
        "s1": TraceSource(
            data=whole.replaced(**s1),
            recipe="student_sft_subset",
            budgets=tuple(
                BudgetForcing(max_thinking_tokens=max_thinking_tokens, continuations=times)
                for times in S1_CONTINUATIONS
            ),
        ),
        "sky-t1": TraceSource(data=whole.replaced(**sky_t1)),
    }


def recipe(profile: str, student: HubModel) -> Config:
    """The paper's recipe; the teacher is 7B and the students are of either size."""
    return Config(
        profile=profile,
        prompt_format="rlt",
        data=STRATOS_17K,
        rl_data=LIMR,
        base_model=QWEN_7B,
        reward_student=STRATOS_7B,
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
        rank_ablation=RankAblationConfig(ranks=16, in_full_pipeline=False),
        student_sft=StudentSFTConfig(
            epochs=3, batch_size=96, learning_rate=1e-5, warmup_ratio=0.1, max_tokens=16384,
            dtype="bfloat16",
        ),
        student_sft_subset=S1_RECIPE,
        larger_student=None if student is QWEN_32B else LargerStudent(model=QWEN_32B),
        trace_sources=trace_sources(24_000),
        countdown=countdown(16384),
        student_grpo=StudentGRPOConfig(
            epochs=1, questions_per_step=16, group_size=64, learning_rate=1e-6,
            max_prompt_tokens=16384, max_completion_tokens=16384,
            reference_sync=ReferenceSync(every_steps=32, alpha=0.9), dtype="bfloat16",
        ),
        evaluation=EVALUATION,
        resources=resources(student),
    )  # fmt: skip


def resources(student: HubModel) -> Resources:
    """Nodes of 8 GPUs of 80 GiB, as `rlt_core.estimate` finds that they suffice; training of a 32B
    student takes two. Shards are large enough for an engine's batch and small enough to be
    shared."""
    of_32b = "" if student is QWEN_32B else ":*large*"
    cold_start: dict[str, Any] = {"vllm_memory": 0.4}
    if student is QWEN_32B:
        cold_start = {"machines": 4, "vllm_server": "http://localhost:8000"}
    return Resources(
        engine="vllm", processes=8, sharding="fsdp", micro_batch_size=1,
        gradient_checkpointing=True, tokens_per_batch=131072, shard_questions=128,
        stages={
            "teacher-grpo": {"vllm_memory": 0.4, "tokens_per_batch": 65536},
            "student-grpo": cold_start,
            f"student-sft{of_32b}": {"machines": 2},
            f"evaluation{of_32b}": {"processes": 4, "tensor_parallel": 2},
        },
    )  # fmt: skip


def paper_7b() -> Config:
    """The paper's 7B students on 17K questions."""
    return recipe("paper-7b", QWEN_7B)


def paper_32b() -> Config:
    """The paper's 32B students of the 7B teacher, on 17K questions."""
    return recipe("paper-32b", QWEN_32B)


def on_1k(config: Config) -> Config:
    """The same students on 1K questions alone."""
    return config.replaced(
        profile=f"{config.profile}-1k", student_sft=S1_RECIPE, student_sft_subset=None
    )
