"""Selected log-probs equal a float64 oracle that materialises everything, however batched."""

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rlt_core.config import RewardSpec, ScratchModel
from rlt_core.errors import Stopped
from rlt_core.grading import Grader
from rlt_core.models import new_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.formula import reward_parts
from rlt_core.rows import read_rows, write_rows
from rlt_core.scoring import (
    ContextBuilder,
    assign_ranks,
    lm_head,
    selected_logprobs,
)
from rlt_core.scoring.lm_head import LogitTransform, head_kl, head_logprobs
from rlt_core.scoring.logprobs import length_batches
from rlt_core.scoring.score_traces import arrivals, contexts_of, score_contexts

VOCABULARY = 23


def random_llama(seed: int, heads: int = 2, tied: bool = False) -> LlamaForCausalLM:
    """Large weights, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8 * heads, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=1, tie_word_embeddings=tied,
        attention_dropout=0.5, initializer_range=0.7,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def oracle(
    model: torch.nn.Module, ids: list[int], span: tuple[int, int], temperature: float
) -> np.ndarray:
    """All logits of one context, alone, model and all in float64."""
    with torch.no_grad():
        logits_TV = deepcopy(model).double()(torch.tensor([ids])).logits[0] / temperature
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    return np.array([float(logprobs_TV[t - 1, ids[t]]) for t in range(*span)])


Contexts = list[tuple[list[int], list[tuple[int, int]]]]


@st.composite
def contexts(draw: st.DrawFn) -> Contexts:
    many = []
    for _ in range(draw(st.integers(1, 9))):
        length = draw(st.integers(1, 40))
        token = st.integers(0, VOCABULARY - 1)
        ids = draw(st.lists(token, min_size=length, max_size=length))
        edge = st.integers(1, length)
        spans = draw(st.lists(st.tuples(edge, edge).map(sorted).map(tuple), max_size=3))
        many.append((ids, spans))
    return many


@given(
    many=contexts(),
    seed=st.integers(0, 3),
    heads=st.sampled_from([1, 2]),
    tied=st.booleans(),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    tokens_per_batch=st.sampled_from([1, 17, 64, 10_000]),
    block_logits=st.sampled_from([1, 5, 40, 1 << 21]),
)
def test_equals_the_oracle_for_any_shape_budget_and_block(
    many: Contexts,
    seed: int,
    heads: int,
    tied: bool,
    temperature: float,
    tokens_per_batch: int,
    block_logits: int,
) -> None:
    model = random_llama(seed, heads, tied)
    ids, spans = [each[0] for each in many], [each[1] for each in many]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "LEAST_ROWS", 1)
        patch.setitem(lm_head.BLOCK_LOGITS, "cpu", block_logits)
        got = selected_logprobs(model, ids, spans, temperature, tokens_per_batch)
    assert [len(arrays) for arrays in got] == [len(each) for each in spans]
    for context, each, arrays in zip(ids, spans, got, strict=True):
        for span, array in zip(each, arrays, strict=True):
            assert array.dtype == np.float32
            expected = oracle(model, context, span, temperature)
            assert array.shape == expected.shape
            # float32 against float64: rounding of the logits, which 1/temperature magnifies.
            np.testing.assert_allclose(array, expected, rtol=5e-5, atol=1e-4)


def test_nothing_after_the_last_selected_token_is_computed() -> None:
    model, seen = random_llama(0), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    ids = [[i % VOCABULARY for i in range(100)]] * 4
    selected_logprobs(model, ids, [[(10, 20)]] * 4, 1.0, 10_000)
    assert seen == [4 * 19]  # token 18 predicts the last one


def test_no_logits_beyond_a_block_ever_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama(0)
    blocks: list[tuple[int, ...]] = []

    model.lm_head.register_forward_hook(lambda head, args, logits: blocks.append(logits.shape))
    ids = [[i % VOCABULARY for i in range(50)] for _ in range(6)]
    spans = [[(10, 14), (40, 50)]] * 6
    monkeypatch.setattr(lm_head, "LEAST_ROWS", 1)
    monkeypatch.setitem(lm_head.BLOCK_LOGITS, "cpu", 80)
    selected_logprobs(model, ids, spans, 1.0, 1000)
    assert max(rows for rows, _ in blocks) == 80 // VOCABULARY
    # All words of the selected positions, nothing else.
    assert sum(rows * words for rows, words in blocks) == 6 * 14 * VOCABULARY


@given(
    positions=st.integers(0, 12), seed=st.integers(0, 5), words=st.integers(1, 40),
    temperature=st.sampled_from([0.7, 1.0, 2.0]), block_logits=st.sampled_from([1, 30, 1 << 21]),
    biased=st.booleans(),
)  # fmt: skip
def test_ranks_surprisal_and_full_kl_equal_the_oracle(
    positions: int, seed: int, words: int, temperature: float, block_logits: int,
    biased: bool,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    p, q = torch.nn.Linear(6, words, bias=biased), torch.nn.Linear(4, words)
    hidden_p, hidden_q = torch.randn(positions, 6) * 3, torch.randn(positions, 4) * 3
    targets = torch.randint(words, (positions,))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "LEAST_ROWS", 1)
        patch.setitem(lm_head.BLOCK_LOGITS, "cpu", block_logits)
        got = head_logprobs(p, hidden_p, targets, temperature, ranks=True)
        kl = head_kl((p, q), (hidden_p, hidden_q), temperature)
        x, y = (each.double()(h.double()) for each, h in [(p, hidden_p), (q, hidden_q)])
    rows = torch.arange(positions)
    assert got.ranks is not None or not positions
    if not positions:
        assert got.logprobs.size == kl.size == 0
        return
    own = x[rows, targets]
    np.testing.assert_array_equal(got.ranks, ((x > own[:, None]).sum(1) + 1).numpy())
    np.testing.assert_allclose(got.surprisal, x.logsumexp(1) - own, atol=1e-4)
    log_p, log_q = (torch.log_softmax(each / temperature, 1) for each in (x, y))
    np.testing.assert_allclose(got.logprobs, log_p[rows, targets], atol=1e-4)
    np.testing.assert_allclose(kl, (log_p.exp() * (log_p - log_q)).sum(1), atol=1e-4)


def test_a_policy_in_training_is_scored_without_dropout_and_left_as_it_was() -> None:
    model = random_llama(1)
    ids, spans = [[1, 2, 3, 4, 5, 6]], [[(2, 6)]]
    expected = selected_logprobs(model, ids, spans, 0.7, 100)[0][0]
    model.train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert np.array_equal(selected_logprobs(model, ids, spans, 0.7, 100)[0][0], expected)
    assert {name: module.training for name, module in model.named_modules()} == modes
    model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()  # still trainable


def test_adapters_count() -> None:
    base = random_llama(2)
    ids, spans = [[1, 2, 3, 4, 5, 6], [7, 8, 9]], [[(2, 6)], [(1, 3)]]
    plain = selected_logprobs(base, ids, spans, 1.0, 100)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False)
    adapted = get_peft_model(base, lora).eval()
    got = selected_logprobs(adapted, ids, spans, 1.0, 100)
    for context, each, arrays, before in zip(ids, spans, got, plain, strict=True):
        np.testing.assert_allclose(arrays[0], oracle(adapted, context, each[0], 1.0), atol=1e-4)
        assert np.abs(arrays[0] - before[0]).max() > 0.01


def test_bad_spans_are_refused() -> None:
    model = random_llama(0)
    for span in [(0, 1), (2, 5), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="context of 4 tokens"):
            selected_logprobs(model, [[1, 2, 3, 4]], [[span]], 1.0, 100)
    assert selected_logprobs(model, [[1, 2]], [[]], 1.0, 100) == [[]]
    assert selected_logprobs(model, [], [], 1.0, 100) == []


@given(
    seed=st.integers(0, 5), temperature=st.sampled_from([0.7, 1.0]),
    scales=st.tuples(st.sampled_from([1.0, 0.25, -2.0]), st.sampled_from([1.0, 3.0])),
    softcaps=st.tuples(st.sampled_from([None, 2.0]), st.sampled_from([None, 5.0])),
    padding=st.tuples(st.integers(0, 12), st.integers(0, 12)), biased=st.booleans(),
    words=st.sampled_from([11, 23, None]),
)  # fmt: skip
def test_transforms_of_logits_and_padded_heads_equal_the_oracle(
    seed: int, temperature: float, scales: tuple[float, float], biased: bool,
    softcaps: tuple[float | None, float | None], padding: tuple[int, int], words: int | None,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    heads = [torch.nn.Linear(6, 23 + more, bias=biased) for more in padding]
    hidden = [torch.randn(9, 6) * 4 for _ in heads]
    targets = torch.randint(23, (9,))
    transforms = tuple(LogitTransform(*each) for each in zip(scales, softcaps, strict=True))
    with torch.no_grad():
        got = head_logprobs(
            heads[0], hidden[0], targets, temperature, transform=transforms[0], ranks=True
        )
        kl = head_kl(tuple(heads), tuple(hidden), temperature, transforms=transforms, words=words)
        x, y = (
            t(head.double()(h.double()))
            for head, h, t in zip(heads, hidden, transforms, strict=True)
        )
    own = x[range(9), targets]  # of the softmax over all rows, as the model's own
    np.testing.assert_allclose(got.surprisal, x.logsumexp(1) - own, atol=1e-4)
    np.testing.assert_allclose(
        got.logprobs, (x / temperature).log_softmax(1)[range(9), targets], atol=1e-4
    )
    shared = words or 23 + min(padding)
    log_p, log_q = ((each[:, :shared] / temperature).log_softmax(1) for each in (x, y))
    np.testing.assert_allclose(kl, (log_p.exp() * (log_p - log_q)).sum(1), atol=1e-4)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 120))
def test_batches_keep_the_budget_and_lose_nothing(lengths: list[int], budget: int) -> None:
    batches = list(length_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == [i for i, n in enumerate(lengths) if n]
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


# ---------------------------------------------------------------- traces
FORMAT = load_format("r1")
TOKENIZER = tiny_tokenizer(FORMAT)
RENDERER = Renderer(FORMAT, TOKENIZER)
QUESTIONS = {
    "q1": {"question": "1+1?", "solution": "2"},
    "q2": {"question": "how many?", "solution": "twenty-three"},
}
SPEC = RewardSpec()


def tiny_model(seed: int) -> PreTrainedModel:
    return new_model(ScratchModel(layers=1, width=32, heads=2, seed=seed), TOKENIZER)


def trace(question_id: str, sample: int, text: str, closed: bool = True) -> dict[str, Any]:
    ids = RENDERER.encode(text)
    return {
        "trace_id": f"{question_id}-{sample}", "question_id": question_id, "seed": 0,
        "teacher": "t", "sample": sample, "text": text, "token_ids": ids, "completion_ids": ids,
        "closed": closed, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1,
    }  # fmt: skip


TRACES = [
    trace("q1", 0, "one and one"),
    trace("q2", 0, "count them all, one by one"),
    trace("q1", 1, "", closed=True),
    trace("q2", 1, "hm", closed=False),
    trace("q2", 2, "x" * 400),
]


def longer_context(question: str, solution: str, think_ids: list[int]) -> int:
    student = RENDERER.student_context(question, think_ids, solution)
    return max(len(student.ids), len(RENDERER.teacher_context(question, solution, think_ids).ids))


def score(
    traces: list[dict[str, Any]],
    questions: dict[str, Any] = QUESTIONS,
    grader: Grader | None = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    longest = longer_context("", "", []) + 100
    progress = changes.get("progress", Progress())
    arguments: dict[str, Any] = {
        "student": "s",
        "load_student": lambda: nullcontext(tiny_model(1)),
        "load_teacher": lambda: nullcontext(tiny_model(2)),
        "spec": SPEC,
        "max_tokens": longest,
        "tokens_per_batch": 4000,
        "correct": arrivals(traces, questions, grader, progress) if grader else None,
    }
    contexts = contexts_of(traces, questions, ContextBuilder(RENDERER, RENDERER))
    return score_contexts(traces, contexts, **{**arguments, **changes})


def test_scores_replay_from_their_own_log_probs_and_the_oracle_agrees(tmp_path: Any) -> None:
    rows = score(TRACES)
    write_rows(tmp_path / "scores.parquet", "scores", rows)
    rows = read_rows(tmp_path, "scores")
    assert [row["trace_id"] for row in rows] == [each["trace_id"] for each in TRACES]
    student, teacher = tiny_model(1), tiny_model(2)
    for row, each in zip(rows[:4], TRACES[:4], strict=True):
        question, solution = QUESTIONS[each["question_id"]].values()
        assert row["status"] == "scored"
        s = RENDERER.student_context(question, each["token_ids"], solution)
        t = RENDERER.teacher_context(question, solution, each["token_ids"])
        assert s.solution is not None
        lists = [
            oracle(student, s.ids, s.solution, 0.7),
            oracle(student, s.ids, s.think, 0.7),
            oracle(teacher, t.ids, t.think, 0.7),
        ]
        names = [
            "student_solution_logprobs", "student_think_logprobs", "teacher_think_logprobs",
        ]  # fmt: skip
        for name, expected in zip(names, lists, strict=True):
            np.testing.assert_allclose(row[name], expected, atol=1e-4)
        exact = reward_parts(*lists, closed=each["closed"], spec=SPEC)
        assert row["reward"] == pytest.approx(exact.reward, abs=1e-3)
        replayed = reward_parts(*(row[name] for name in names), closed=row["closed"], spec=SPEC)
        assert row["reward"] == replayed.reward and row["kl_max"] == replayed.kl_max
        assert row["solution_tokens"] == len(lists[0])
        assert row["think_tokens"] == len(each["token_ids"])
    assert rows[2]["kl_mean"] == rows[2]["kl_max"] == 1.0  # empty, though the prefix is scored
    assert rows[3]["penalty"] == -1.0


def test_an_over_long_trace_is_a_status_not_a_score() -> None:
    rows = score(TRACES)
    long = rows[4]
    assert long["status"] == "too_long" and long["think_tokens"] == 400
    empty = ("reward", "r_ss", "penalty", "rank", "student_think_logprobs")
    assert all(long[name] is None for name in empty)
    assert {row["rank"] for row in rows if row["question_id"] == "q2"} == {1, 2, None}
    exact_fit = longer_context("1+1?", "2", TRACES[0]["token_ids"])
    assert score(TRACES[:1], max_tokens=exact_fit)[0]["status"] == "scored"
    assert score(TRACES[:1], max_tokens=exact_fit - 1)[0]["status"] == "too_long"


def test_one_model_at_a_time_and_none_without_work() -> None:
    loads: list[str] = []

    def loader(name: str, seed: int) -> Any:
        return lambda: loads.append(name) or nullcontext(tiny_model(seed))

    changes = {"load_student": loader("student", 1), "load_teacher": loader("teacher", 2)}
    score(TRACES, **changes, tokens_per_batch=300)
    assert loads == ["student", "teacher"]
    assert score([], **changes) == [] and score(TRACES[4:], **changes)[0]["reward"] is None
    assert loads == ["student", "teacher"]


def test_scoring_reports_progress_and_stops_on_request() -> None:
    seen: list[float] = []
    progress = Progress(report=lambda done, total, metrics: seen.append(done / total))
    score(TRACES, progress=progress, tokens_per_batch=1)
    # Four contexts of the student, three of the teacher: one has nothing to score.
    assert len(seen) == 7 and seen == sorted(seen)
    assert seen[3] == 0.5 and seen[-1] == 1.0
    with pytest.raises(Stopped):
        score(TRACES, progress=Progress(should_stop=lambda: True))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=12))
def test_ranks_are_within_a_question_whatever_the_order(pairs: list[tuple[str, int]]) -> None:
    rows = [
        {"question_id": question, "seed": 0, "teacher": "t", "student": "s", "sample": sample,
         "reward": float(reward) if reward else None}
        for sample, (question, reward) in enumerate(pairs)
    ]  # fmt: skip
    ranked = assign_ranks(rows)
    assert [row["sample"] for row in ranked] == [row["sample"] for row in rows]
    for question in "ab":
        group = [row for row in ranked if row["question_id"] == question and row["reward"]]
        group.sort(key=lambda row: (-row["reward"], row["sample"]))
        assert [row["rank"] for row in group] == list(range(1, len(group) + 1))
    assert all(row["rank"] is None for row in ranked if row["reward"] is None)
    backwards = assign_ranks(rows[::-1])[::-1]
    assert backwards == ranked


# ---------------------------------------------------------------- does it arrive?
def question(answer: str | None, grader: str, metadata: str | None = None) -> dict[str, Any]:
    return {
        "question": "q", "solution": "s", "answer": answer, "grader": grader, "metadata": metadata,
    }  # fmt: skip


COLUMNS = "07+2=09 09+6=15;01+4=05 05+8=13 13+9=22;"
GRADED = {
    "sum": question("225", "arithmetic"),
    "algebra": question("\\frac{1}{2}", "math"),
    "made": question("7", "countdown", '{"numbers": [3, 4], "target": 7}'),
    "free": question(None, "none"),
}


@pytest.mark.parametrize(
    "name, text, arrives",
    [
        ("sum", f"{COLUMNS}225", True),
        ("sum", "15;22;225", True),
        ("sum", "05+8=13 07+2=09;225", True),
        ("sum", f"{COLUMNS}226", False),
        ("sum", COLUMNS, False),  # cut: the last number is that of a column
        ("sum", "", False),
        ("algebra", "Both halves are equal, so each is $\\boxed{0.5}$.", True),
        ("algebra", "Both halves are equal, so each is $\\boxed{5}$.", False),
        ("made", "Add them:\n3 + 4", True),
        ("made", "Add them:\n3 * 4", False),
        ("made", "I would not know", False),
        ("free", "a fine thought", None),
    ],
)
def test_an_explanation_is_graded_as_an_answer(name: str, text: str, arrives: bool | None) -> None:
    with Grader() as grader:
        (row,) = score([trace(name, 0, text)], GRADED, grader=grader)
    assert row["correct"] is arrives


def test_without_a_grade_correct_is_empty() -> None:
    items = [trace("algebra", 0, "$\\boxed{0.5}$"), trace("algebra", 1, "$9^{9^{9^9}}$")]
    with Grader(timeout_s=1.0) as grader:
        rows = score(items, GRADED, grader=grader)
    assert [row["correct"] for row in rows] == [True, None]
    assert all(row["correct"] is None for row in score(TRACES))


def test_grading_stops_on_request() -> None:
    looks = iter([False, False])
    progress = Progress(should_stop=lambda: next(looks, True))
    with Grader() as grader, pytest.raises(Stopped):
        score([trace("sum", i, "225") for i in range(9)], GRADED, grader=grader, progress=progress)
