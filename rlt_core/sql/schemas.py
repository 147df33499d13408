"""The columns of every table, declared once. Readers, writers and SQL views use these."""

from __future__ import annotations

import pyarrow as pa

LOGPROBS = pa.list_(pa.float32())
TOKENS = pa.list_(pa.int32())


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


QUESTIONS = _schema(
    question_id=pa.string(),  # first 16 hex digits of sha256 of the normalised question
    split=pa.string(),  # train | validation | test
    question=pa.string(),
    solution=pa.string(),
    answer=pa.string(),  # what grading compares with; may be null (ungradable)
    trace=pa.string(),  # the data set's own trace; may be null
    grader=pa.string(),  # math | arithmetic | countdown | none
    metadata=pa.string(),  # JSON: countdown's numbers; `accepted`: answers of which any is right
    source=pa.string(),
    system=pa.string(),  # the student's system prompt, if the data set gives it; else null
    licence=pa.string(),  # of the row, or on its data set's card; null: not said
    prompt_tokens=pa.int32(),  # tokens of the teacher's prompt
)

TRACES = _schema(
    trace_id=pa.string(),  # "{question_id}-{sample}" inside its artifact
    question_id=pa.string(),
    seed=pa.int32(),
    teacher=pa.string(),  # key of the model that wrote it, or the name of an imported source
    sample=pa.int32(),
    text=pa.string(),  # the explanation alone, tags excluded
    token_ids=TOKENS,  # of the explanation alone (the think span), as sampled
    completion_ids=TOKENS,  # the whole completion as sampled, tags and end-of-turn included
    closed=pa.bool_(),  # the end-of-explanation tag was written
    finish_reason=pa.string(),  # stop | length
    prompt_tokens=pa.int32(),
    completion_tokens=pa.int32(),
)

SCORES = _schema(
    trace_id=pa.string(),
    question_id=pa.string(),
    seed=pa.int32(),
    teacher=pa.string(),
    student=pa.string(),  # key of the reward student
    sample=pa.int32(),
    status=pa.string(),  # scored | too_long
    reward=pa.float64(),
    r_ss=pa.float64(),
    r_kl=pa.float64(),
    solution_mean=pa.float64(),  # reduction of log pi_S(solution)
    solution_min=pa.float64(),
    kl_mean=pa.float64(),
    kl_max=pa.float64(),
    penalty=pa.float64(),
    rank=pa.int32(),  # 1 is the best reward among the question's completions
    closed=pa.bool_(),
    think_tokens=pa.int32(),
    solution_tokens=pa.int32(),
    # rivals of the reward, beside r_ss, r_kl and think_tokens (rlt_core.scoring)
    think_mean=pa.float64(),  # mean log pi_S(think): plain likelihood
    rank_surprisal=pa.float64(),  # rank-surprisal ratio, arXiv 2601.14249; lower is better
    correct=pa.bool_(),  # the explanation arrives at the solution; null: cannot be graded
    # what guards watch (rlt_core.reward.diagnostics)
    copied=pa.float64(),  # share of the solution's n-grams in the explanation; null: too short
    compression=pa.float64(),  # bytes of text a byte of its compressed form; null: too short
    doubt=pa.float64(),  # words of doubt per 1,000 tokens of the explanation
    clipped=pa.bool_(),  # cut at the token limit
    temperature=pa.float64(),
    student_solution_logprobs=LOGPROBS,
    student_think_logprobs=LOGPROBS,
    teacher_think_logprobs=LOGPROBS,
    think_kl=LOGPROBS,  # KL over the whole vocabulary at each token; null unless reward.kl=full
)

EVAL_SAMPLES = _schema(
    task=pa.string(),
    question_id=pa.string(),
    seed=pa.int32(),
    model=pa.string(),  # key of the model that answered
    sample=pa.int32(),
    question=pa.string(),
    completion=pa.string(),
    extracted=pa.string(),  # the answer that grading read; null when unparsable
    answer=pa.string(),
    outcome=pa.string(),  # correct | wrong | unparsable | ungradable | grader_failed
    finish_reason=pa.string(),  # stop | length | too_long: its prompt fills the model's context
    completion_tokens=pa.int32(),
)

EVAL_SCORES = _schema(
    task=pa.string(),
    seed=pa.int32(),
    model=pa.string(),
    label=pa.string(),  # the model's name in the graph, e.g. student[rlt]
    metric=pa.string(),  # avg@n | pass@k
    value=pa.float64(),  # fraction
    low=pa.float64(),  # 95% interval, clustered by question
    high=pa.float64(),
    questions=pa.int32(),
    samples=pa.int32(),  # completions a question
    ungraded=pa.int32(),  # completions left out: ungradable
    grader_failed=pa.int32(),  # completions counted as wrong because the grader hung or died
)

TRAIN_STEPS = _schema(
    stage=pa.string(),
    seed=pa.int32(),
    step=pa.int32(),
    epoch=pa.float64(),
    loss=pa.float64(),
    learning_rate=pa.float64(),
    grad_norm=pa.float64(),
    tokens=pa.int64(),  # of the step's sequences, prompts included, padding not
    tokens_per_s=pa.float64(),
    seconds=pa.float64(),
    reward=pa.float64(),  # mean over the step's completions; null in SFT
    reward_std=pa.float64(),  # mean over groups of the std inside a group
    zero_std_groups=pa.float64(),  # share of groups in which all rewards are equal
    r_ss=pa.float64(),
    r_kl=pa.float64(),
    solution_mean=pa.float64(),
    solution_min=pa.float64(),
    kl_mean=pa.float64(),
    kl_max=pa.float64(),
    unclosed=pa.float64(),  # share of completions without the closing tag
    correct=pa.float64(),  # share graded correct (correctness reward)
    grader_failed=pa.float64(),  # share on which the grader hung or died (correctness reward)
    reference_kl=pa.float64(),
    completion_tokens=pa.float64(),  # mean
    clipped=pa.float64(),  # share of completions cut at the token limit
    copied=pa.float64(),  # means of what guards watch, over completions that have it
    compression=pa.float64(),
    doubt=pa.float64(),
    # the engine that drew the step's completions against the policy that learns from them
    rollout_gap_mean=pa.float64(),  # |log-prob of the policy - at sampling| a token
    rollout_gap_max=pa.float64(),
    rollout_ratio=pa.float64(),  # mean probability under the policy / at sampling, a token
)

RANK_SCORES = _schema(
    seed=pa.int32(),
    ranked_by=pa.string(),  # what the traces of a question were ranked by
    rank=pa.int32(),
    task=pa.string(),
    value=pa.float64(),
    low=pa.float64(),
    high=pa.float64(),
    mean_reward=pa.float64(),
    traces=pa.int32(),
)

EVAL_OVERLAPS = _schema(
    question_id=pa.string(),  # of training
    task=pa.string(),  # the evaluation set
    evaluation_id=pa.string(),  # question_id in the evaluation set
    n=pa.int32(),  # 13 | 8 words shared in a row; null: the same question or problem as a whole
    shared=pa.string(),  # the first words shared, in normal form
)

DROPPED = _schema(
    row=pa.int64(),  # 1-based row of the source
    question_id=pa.string(),
    # duplicate | near_duplicate | prompt_too_long | overlap; of a row that cannot be used
    # unreadable | missing | empty | tags | turns | provider_error; of one that is kept: ungradable
    reason=pa.string(),
    detail=pa.string(),
)

TABLES: dict[str, pa.Schema] = {
    "questions": QUESTIONS,
    "traces": TRACES,
    "scores": SCORES,
    "eval_samples": EVAL_SAMPLES,
    "eval_scores": EVAL_SCORES,
    "train_steps": TRAIN_STEPS,
    "rank_scores": RANK_SCORES,
    "dropped": DROPPED,
    "eval_overlaps": EVAL_OVERLAPS,
}
"""Table name -> columns. An artifact's file `{table}.parquet` or `{table}/*.parquet` holds it."""
