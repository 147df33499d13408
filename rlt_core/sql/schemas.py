"""The columns of every table, each declared once with its type and its meaning.

Readers, writers and SQL views use these declarations, and `python -m rlt_core.sql.schemas` prints
the column reference of docs/sql.md from them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

Column = tuple[pa.DataType, str]
"""Type and meaning."""

STRING, BOOL, INT, BIGINT = pa.string(), pa.bool_(), pa.int32(), pa.int64()
DOUBLE, TIME = pa.float64(), pa.timestamp("ms")
LOGPROBS, TOKENS = pa.list_(pa.float32()), pa.list_(pa.int32())
SQL_TYPES = {
    STRING: "varchar", BOOL: "boolean", INT: "integer", BIGINT: "bigint", DOUBLE: "double",
    TIME: "timestamp_ms", LOGPROBS: "float[]", TOKENS: "integer[]",
}  # fmt: skip

RUN: Column = (STRING, "key of the artifact that wrote the row")
NODE: Column = (STRING, "the artifact's node, e.g. `trace-scoring[rlt]`")
RUN_KEY: Column = (STRING, "key of the artifact")
QUESTION_ID: Column = (STRING, "first 16 hex digits of the sha256 of the normalised question")
SEED: Column = (INT, "seed of the run")
SAMPLE: Column = (INT, "number among the question's completions, from 0")
TASK: Column = (STRING, "`test`, `countdown`, `math_500`, …")

ABOUT: dict[str, str] = {}
"""View -> description of a row."""
MEANINGS: dict[str, dict[str, str]] = {}
"""View -> column -> meaning. Beside the schemas, since field metadata would be written to files."""


def _declare(view: str, about: str, **columns: Column) -> pa.Schema:
    ABOUT[view] = about
    MEANINGS[view] = {name: meaning for name, (_, meaning) in columns.items()}
    return pa.schema([pa.field(name, kind) for name, (kind, _) in columns.items()])


QUESTIONS = _declare(
    "questions",
    """One row per question, from `dataset-prep` (and from imported traces).""",
    question_id=QUESTION_ID,
    split=(STRING, "`train`, `validation` or `test`"),
    question=(STRING, "the question's text"),
    solution=(STRING, "the worked solution that the teacher sees"),
    answer=(STRING, "what grading compares with; null: ungradable"),
    trace=(STRING, "the data set's own trace, or null"),
    grader=(STRING, "`math`, `arithmetic`, `countdown` or `none`"),
    metadata=(STRING, "JSON: what the grader needs beside the answer"),
    source=(STRING, "where the row came from"),
    system=(STRING, "the student's system prompt, if the data set gives it; else null"),
    licence=(STRING, "licence of the row, or of the hub set that it came from; null: not said"),
    prompt_tokens=(INT, "tokens of the teacher's prompt"),
)

TRACES = _declare(
    "traces",
    """One row per explanation that a teacher wrote.""",
    trace_id=(STRING, "`{question_id}-{sample}`, unique inside its artifact"),
    question_id=QUESTION_ID,
    seed=SEED,
    teacher=(STRING, "key of the model that wrote it, or the name of an imported source"),
    sample=SAMPLE,
    text=(STRING, "the explanation alone, tags excluded"),
    token_ids=(TOKENS, "token ids of the explanation alone, as sampled"),
    completion_ids=(TOKENS, "the whole completion as sampled, tags and end-of-turn included"),
    closed=(BOOL, "the end-of-explanation tag was written"),
    finish_reason=(STRING, "`stop`, or `length`: the token limit cut it"),
    prompt_tokens=(INT, "tokens of the prompt"),
    completion_tokens=(INT, "tokens of the completion"),
)

SCORES = _declare(
    "scores",
    """One row per trace and reward student. The reward with other weights, reductions or KL
estimators can be recomputed from the log-prob lists without a model: with the
[macros](#the-reward-as-macros), or for whole artifacts with `rlt reward replay`.""",
    trace_id=(STRING, "the trace, inside the artifact that lineage calls `traces`"),
    question_id=QUESTION_ID,
    seed=SEED,
    teacher=(STRING, "key of the model that wrote the trace"),
    student=(STRING, "key of the reward student"),
    sample=SAMPLE,
    status=(STRING, "`scored`, or `too_long` for the student's context: then no reward"),
    reward=(
        DOUBLE,
        "r_ss - lambda * r_kl + penalty; without a model of the teacher r_ss + penalty",
    ),
    r_ss=(
        DOUBLE,
        "solution_mean + alpha * solution_min: how likely the student finds the solution",
    ),
    r_kl=(
        DOUBLE,
        "kl_mean + alpha * kl_max: how unlikely the student finds the explanation; null without a "
        "model of the teacher",
    ),
    solution_mean=(DOUBLE, "mean log-prob of the solution's tokens (or the config's reduction)"),
    solution_min=(DOUBLE, "minimum log-prob of the solution's tokens (or the config's reduction)"),
    kl_mean=(DOUBLE, "mean over the explanation's tokens of teacher minus student log-prob"),
    kl_max=(DOUBLE, "maximum of the same differences"),
    penalty=(DOUBLE, "penalty of an explanation without its closing tag, else 0"),
    rank=(INT, "1 is the best reward among the question's traces"),
    closed=(BOOL, "the end-of-explanation tag was written"),
    think_tokens=(INT, "tokens of the explanation"),
    solution_tokens=(INT, "tokens of the solution"),
    think_mean=(DOUBLE, "mean log-prob of the explanation under the student: plain likelihood"),
    rank_surprisal=(
        DOUBLE,
        "rank-surprisal ratio of the explanation (arXiv 2601.14249); lower is better",
    ),
    correct=(
        BOOL,
        "the explanation, read as an answer, arrives at the solution; null: cannot be graded",
    ),
    copied=(
        DOUBLE,
        "share of the solution's n-grams that the explanation repeats; null: too short",
    ),
    compression=(
        DOUBLE,
        "compression ratio of the text, large where it repeats itself; null: too short",
    ),
    doubt=(DOUBLE, "words of doubt per 1,000 tokens of the explanation"),
    clipped=(BOOL, "cut at the token limit"),
    anchor_gap=(
        DOUBLE,
        "mean log-prob of the solution's tokens minus that of a wrong solution's (its last number "
        "raised by one, or another question's); null unless `trace_scoring.anchoring` is set",
    ),
    solved_at=(
        DOUBLE,
        "part of the explanation (a quarter to 1) after which the solution's log-prob has made "
        "half of its way; null unless `trace_scoring.anchoring`, or it gets no likelier",
    ),
    utility=(
        DOUBLE,
        "change of the mean log-prob of held-out solutions after one SFT step of the student on "
        "the trace; null unless `trace_scoring.utility_questions` chose its question",
    ),
    temperature=(DOUBLE, "temperature by which logits were divided"),
    student_solution_logprobs=(
        LOGPROBS,
        "log-prob of each token of the solution, natural logarithm",
    ),
    student_think_logprobs=(
        LOGPROBS,
        "log-prob of each token of the explanation; the student does not see the solution",
    ),
    teacher_think_logprobs=(
        LOGPROBS,
        "log-prob of each token of the explanation; the teacher sees the solution",
    ),
    think_kl=(
        LOGPROBS,
        "full-vocabulary KL at each token of the explanation; null unless `reward.kl` is `full`",
    ),
    think_span_ends=(
        TOKENS,
        "of a teacher and a student with different tokenizers: the explanation's log-probs are "
        "those of spans of text that both have, which end after so many characters; else null",
    ),
)

EVAL_SAMPLES = _declare(
    "eval_samples",
    """One row per completion of an evaluated model.""",
    task=TASK,
    question_id=QUESTION_ID,
    seed=SEED,
    model=(STRING, "key of the model that answered"),
    sample=SAMPLE,
    question=(STRING, "the question's text"),
    completion=(STRING, "what the model wrote"),
    extracted=(STRING, "the answer that grading read; null when there is none"),
    answer=(STRING, "the right answer"),
    outcome=(STRING, "`correct`, `wrong`, `unparsable`, `ungradable` or `grader_failed`"),
    finish_reason=(
        STRING,
        "`stop`; `length`: cut by the token limit or the context; "
        "`too_long`: the prompt alone fills the context",
    ),
    completion_tokens=(INT, "tokens of the completion"),
)

EVAL_SCORES = _declare(
    "eval_scores",
    """One row per evaluated model, task and metric.""",
    task=TASK,
    seed=SEED,
    model=(STRING, "key of the model"),
    label=(STRING, "the model's name in the graph, e.g. `rlt`"),
    metric=(STRING, "`avg@n` or `pass@k`"),
    value=(DOUBLE, "fraction"),
    low=(DOUBLE, "lower end of the 95% interval, clustered by question"),
    high=(DOUBLE, "upper end of the interval"),
    questions=(INT, "graded questions"),
    samples=(INT, "completions per question"),
    ungraded=(INT, "completions left out: ungradable"),
    grader_failed=(INT, "completions counted as wrong because the grader hung or died"),
)

TRAIN_STEPS = _declare(
    "train_steps",
    """One row per optimiser step of a stage that trains.""",
    stage=(STRING, "`teacher-grpo`, `student-sft`, …"),
    seed=SEED,
    step=(INT, "optimiser step, from 1"),
    epoch=(DOUBLE, "passes over the data so far"),
    loss=(DOUBLE, "training loss"),
    learning_rate=(DOUBLE, "learning rate of the step"),
    grad_norm=(DOUBLE, "norm of the gradient before clipping"),
    tokens=(BIGINT, "tokens of the step's sequences, prompts included, padding excluded"),
    tokens_per_s=(DOUBLE, "tokens per second"),
    seconds=(DOUBLE, "duration of the step"),
    reward=(DOUBLE, "mean reward of the step's completions; null in SFT"),
    reward_std=(DOUBLE, "mean over groups of the standard deviation inside a group"),
    zero_std_groups=(DOUBLE, "share of groups in which all rewards are equal"),
    r_ss=(DOUBLE, "mean, as in `scores`"),
    r_kl=(DOUBLE, "mean, as in `scores`"),
    solution_mean=(DOUBLE, "mean, as in `scores`"),
    solution_min=(DOUBLE, "mean, as in `scores`"),
    kl_mean=(DOUBLE, "mean, as in `scores`"),
    kl_max=(DOUBLE, "mean, as in `scores`"),
    unclosed=(DOUBLE, "share of completions without the closing tag"),
    correct=(DOUBLE, "share graded correct (correctness reward)"),
    grader_failed=(DOUBLE, "share on which the grader hung or died (correctness reward)"),
    reference_kl=(DOUBLE, "KL to the reference model"),
    completion_tokens=(DOUBLE, "mean tokens of a completion"),
    clipped=(DOUBLE, "share of completions cut at the token limit"),
    copied=(DOUBLE, "mean, as in `scores`"),
    compression=(DOUBLE, "mean, as in `scores`"),
    doubt=(DOUBLE, "mean, as in `scores`"),
    rollout_gap_mean=(
        DOUBLE,
        "mean of \|log-prob in training - log-prob at sampling\| over sampled tokens; null in SFT",
    ),
    rollout_gap_max=(DOUBLE, "maximum of the same differences"),
    rollout_ratio=(DOUBLE, "mean importance ratio: probability in training / at sampling"),
)

_PARTS = ("reward", "r_ss", "r_kl", "solution_mean", "solution_min", "kl_mean", "kl_max", "penalty")
_TOKENWISE = (
    "student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs", "think_kl",
    "think_span_ends",
)  # fmt: skip


def _as_in_scores(*names: str) -> dict[str, Column]:
    return {name: (SCORES.field(name).type, MEANINGS["scores"][name]) for name in names}


ROLLOUTS = _declare(
    "rollouts",
    """One row per completion of a logged step of GRPO (the first, the last, every
`resources.rollouts_every_steps`th), sampled and scored before the step's update. With an
`advantage`: the step's own completions, from which it learned, all of at most four of its
questions; each step has others. Without: four new completions of each of two watched questions,
the same ones at every logged step, which show how explanations change; nothing is learned from
them. Training uses these questions late or never.""",
    stage=(STRING, "`teacher-grpo` or `student-grpo`"),
    seed=SEED,
    step=(INT, "optimiser step, from 1"),
    question_id=QUESTION_ID,
    sample=SAMPLE,
    advantage=(
        DOUBLE,
        "(reward - mean of the group) / (standard deviation of the group + 1e-4); null for a "
        "watched question",
    ),
    **_as_in_scores(*_PARTS),
    correct=(BOOL, "graded correct; null where the reward is not correctness"),
    closed=(BOOL, "the end tag of the explanation (in `student-grpo`: of the answer) was written"),
    **_as_in_scores("clipped", "copied", "compression", "doubt"),
    text=(STRING, "the explanation alone, tags excluded; in `student-grpo` the whole completion"),
    token_ids=(TOKENS, "token ids of `text`, as sampled"),
    completion_ids=(TOKENS, "the whole completion as sampled, tags and end-of-turn included"),
    completion_logprobs=(
        LOGPROBS,
        "log-prob of each token of the completion, as the engine recorded it when it sampled",
    ),
    **_as_in_scores(*_TOKENWISE),
)

RANK_SCORES = _declare(
    "rank_scores",
    """One row per ranked set, seed, rank and task of the rank ablation.""",
    seed=SEED,
    ranked_by=(
        STRING,
        "criterion by which a question's traces were ranked: `reward`, `length`, `random`, …",
    ),
    rank=(INT, "rank of the traces that the student was trained on, 1 is best"),
    task=TASK,
    value=(DOUBLE, "fraction correct"),
    low=(DOUBLE, "lower end of the 95% interval"),
    high=(DOUBLE, "upper end of the interval"),
    mean_reward=(DOUBLE, "mean reward of the traces of this rank"),
    traces=(INT, "number of traces"),
    utility=(DOUBLE, "mean measured utility of the traces of this rank; null: not measured"),
)

DROPPED = _declare(
    "dropped",
    """One row per row of the data that was left out.""",
    row=(BIGINT, "number of the row in its source, from 1"),
    question_id=(STRING, "as in `questions`; null for a row that cannot be used"),
    reason=(
        STRING,
        "`duplicate`, `near_duplicate`, `overlap` or `prompt_too_long`; for a row that cannot be "
        "used `unreadable`, `missing`, `empty`, `tags`, `turns` or `provider_error`; for a trace "
        "of an LLM `refused`, `empty`, `cut`, `tagged` or `rejected`; for one that is not "
        "selected `cut`, `too_long`, `wrong` or `ungradable`; for a kept row `ungradable`",
    ),
    detail=(STRING, "details of the reason"),
)

EVAL_OVERLAPS = _declare(
    "eval_overlaps",
    """One row per pair of a training and an evaluation question that share text; `data.overlap`
says whether the training question was dropped.""",
    question_id=(STRING, "the training question"),
    task=(STRING, "the evaluation set"),
    evaluation_id=(STRING, "the question in the evaluation set"),
    n=(INT, "words shared in a row, 13 or 8; null: the same question or problem as a whole"),
    shared=(STRING, "the first words shared, in normal form"),
)

TABLES: dict[str, pa.Schema] = {
    "questions": QUESTIONS,
    "traces": TRACES,
    "scores": SCORES,
    "eval_samples": EVAL_SAMPLES,
    "eval_scores": EVAL_SCORES,
    "train_steps": TRAIN_STEPS,
    "rollouts": ROLLOUTS,
    "rank_scores": RANK_SCORES,
    "dropped": DROPPED,
    "eval_overlaps": EVAL_OVERLAPS,
}
"""Table name -> columns. An artifact's file `{table}.parquet` or `{table}/*.parquet` holds it."""

# ---------------------------------------------------------------- views made from manifests
ARTIFACTS = _declare(
    "artifacts",
    """One row per committed artifact.""",
    run=RUN_KEY,
    kind=(STRING, "`model`, `traces`, `scores`, …"),
    stage=(STRING, "stage that made it"),
    stage_version=(INT, "version of the stage"),
    label=NODE,
    profile=(STRING, "profile of the run that made it"),
    seed=SEED,
    created=(TIME, "time of the commit, UTC"),
    seconds=(DOUBLE, "wall-clock time"),
    gpu_seconds=(DOUBLE, "seconds on a GPU; 0 on a CPU"),
    device=(STRING, "`cpu`, or the GPU"),
    bytes=(BIGINT, "size of all files"),
    rows=(BIGINT, "rows of all its tables"),
    metrics=(STRING, "JSON: `metrics->>'mean_reward'`"),
    config=(STRING, "JSON: `config->'reward'->>'alpha'`"),
)

COSTS = _declare(
    "costs",
    """One row per artifact: the cost of its computation.""",
    run=RUN_KEY,
    stage=(STRING, "stage that made it"),
    label=NODE,
    profile=(STRING, "profile of the run that made it"),
    seed=SEED,
    started=(TIME, "time of the start, UTC"),
    created=(TIME, "time of the commit, UTC"),
    seconds=(DOUBLE, "wall-clock time"),
    gpu_seconds=(DOUBLE, "seconds on a GPU; 0 on a CPU"),
    thread_seconds=(DOUBLE, "seconds times threads: an upper bound of the CPU time"),
    threads=(INT, "CPU threads of the run"),
    device=(STRING, "`cpu`, or the GPU"),
    bytes=(BIGINT, "size of all files"),
)

LINEAGE = _declare(
    "lineage",
    """One row per artifact and artifact that it read.""",
    run=(STRING, "key of the reading artifact"),
    stage=(STRING, "stage of the reading artifact"),
    input=(STRING, "name of the input: `traces`, `teacher`, …"),
    input_run=(STRING, "key of the artifact that was read"),
    input_stage=(STRING, "stage of the input; null when it is no longer in the store"),
)

REFS = _declare(
    "refs",
    """One row per name: the artifact of the latest run that asked for the node.""",
    name=(STRING, "`PROFILE/NODE@SEED`, e.g. `tiny/teacher-grpo@0`"),
    run=RUN_KEY,
)


def _view(table: str, schema: pa.Schema) -> pa.Schema:
    """The columns of a table's view: `run`, `label` if the table lacks it, its own."""
    added = {"run": RUN} if "label" in schema.names else {"run": RUN, "label": NODE}
    MEANINGS[table] = {name: meaning for name, (_, meaning) in added.items()} | MEANINGS[table]
    return pa.schema([pa.field(name, kind) for name, (kind, _) in added.items()] + list(schema))


VIEWS: dict[str, pa.Schema] = {name: _view(name, schema) for name, schema in TABLES.items()} | {
    "artifacts": ARTIFACTS,
    "costs": COSTS,
    "lineage": LINEAGE,
    "refs": REFS,
}
"""View name -> columns: everything that SQL can name."""


def reference() -> Iterator[str]:
    """The lines of the column reference of docs/sql.md."""
    for view, schema in VIEWS.items():
        yield from (f"### {view}", "", ABOUT[view], "")
        yield from ("| column | type | meaning |", "| --- | --- | --- |")
        for field in schema:
            meaning = MEANINGS[view][field.name]
            yield f"| `{field.name}` | {SQL_TYPES[field.type]} | {meaning} |"
        yield ""


if __name__ == "__main__":
    print("\n".join(reference()))
