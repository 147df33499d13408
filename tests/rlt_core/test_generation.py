"""Engines sample from the model, reproducibly, whatever shares the batch."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from rlt_core.config import Sampling, ScratchModel, StageResources
from rlt_core.errors import Stopped, UserError
from rlt_core.generation import Completion, open_engine, sample_seed
from rlt_core.generation.hf import TransformersEngine, sample_tokens, uniforms
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.scoring import selected_logprobs
from tests.imports import imported

VOCABULARY = 19
STOP = 3


def llama(seed: int = 0, **changes: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5,
        bos_token_id=None, eos_token_id=STOP, pad_token_id=0, **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


MODEL = llama()
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [5, 6], [16, 17, 18]]
SEEDS = [[10 * i + j for j in range(4)] for i in range(len(PROMPTS))]


def generate(
    prompts: list[list[int]] = PROMPTS,
    seeds: list[list[int]] = SEEDS,
    budget: int = 10_000,
    model: PreTrainedModel = MODEL,
    stop: tuple[int, ...] = (STOP,),
    progress: Progress | None = None,
    **sampling: float,
) -> list[list[Completion]]:
    settings = Sampling.model_validate({"max_tokens": 30, "temperature": 1.0, **sampling})
    return TransformersEngine(model, budget).generate(prompts, settings, seeds, stop, progress)


def same(first: Completion, second: Completion) -> bool:
    return (
        first.ids == second.ids
        and first.finish_reason == second.finish_reason
        and bool(np.allclose(first.logprobs, second.logprobs, atol=1e-4))
    )


# ---------------------------------------------------------------- what is sampled
def test_greedy_equals_transformers_own_generate() -> None:
    for prompt, [ours] in zip(PROMPTS, generate(seeds=[[0]] * 5, temperature=0.0), strict=True):
        ids = torch.tensor([prompt])
        theirs = MODEL.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30
        )
        assert ours.ids == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_log_probs_are_those_of_scoring_the_completion(temperature: float) -> None:
    sampled = generate(temperature=temperature)
    pairs = [(p, c) for p, each in zip(PROMPTS, sampled, strict=True) for c in each]
    contexts = [prompt + completion.ids for prompt, completion in pairs]
    spans = [[(len(prompt), len(prompt) + len(c.ids))] for prompt, c in pairs]
    scored = selected_logprobs(MODEL, contexts, spans, temperature, 1000)
    for (_, completion), [expected] in zip(pairs, scored, strict=True):
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)


def test_completions_follow_the_models_distribution() -> None:
    n = 4000
    sampled = generate([[5, 6, 7]], [list(range(n))], budget=200_000, max_tokens=2, stop=())[0]
    with torch.no_grad():
        first = MODEL(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
        second = MODEL(torch.tensor([[5, 6, 7, t] for t in range(VOCABULARY)])).logits[:, -1]
        joint = (first[:, None] * second.softmax(-1)).flatten().double().numpy()
    joint /= joint.sum()
    counts = np.bincount(
        [c.ids[0] * VOCABULARY + c.ids[1] for c in sampled], minlength=VOCABULARY**2
    )
    often = n * joint > 5
    observed = [*counts[often], counts[~often].sum()]
    expected = n * np.array([*joint[often], joint[~often].sum()])
    assert len(observed) > 20
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_top_p_keeps_the_likeliest_tokens_that_reach_it() -> None:
    probs = torch.tensor([[0.05, 0.5, 0.25, 0.2]])
    logits = probs.log().repeat(1000, 1)
    u = torch.from_numpy(uniforms([1], 1000)[0])
    for top_p, kept in [
        (0.0, {1}),
        (0.4, {1}),
        (0.5, {1}),
        (0.6, {1, 2}),
        (0.9, {1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ]:
        tokens, logprobs = sample_tokens(logits, u, 1.0, top_p)
        assert set(tokens.tolist()) == kept
        mass = sum(float(probs[0, token]) for token in kept)
        expected = (probs[0, tokens] / mass).log()
        assert torch.allclose(logprobs, expected, atol=1e-5)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_a_token_without_probability_is_never_sampled(logits: list[float], bits: int) -> None:
    u = torch.tensor([(bits + 0.5) / 2**32], dtype=torch.float64)
    padded = torch.tensor([[-torch.inf, *logits, -torch.inf]])
    token, logprob = sample_tokens(padded, u, 1.0, 1.0)
    assert 1 <= int(token) <= len(logits) and torch.isfinite(logprob).all()


def test_the_highest_random_number_still_samples_a_token() -> None:
    u = torch.tensor([1 - 0.5 / 2**32], dtype=torch.float64)
    for size in range(1, 300):
        logits = torch.full((1, size + 1), 0.1 * size)
        logits[0, -1] = -torch.inf
        assert int(sample_tokens(logits, u, 1.0, 1.0)[0]) == size - 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    for temperature in (0.0, 1.0):
        with pytest.raises(RuntimeError, match="not finite"):
            sample_tokens(logits, torch.full((2,), 0.5, dtype=torch.float64), temperature, 1.0)
    logits[1, 3] = -torch.inf  # a masked word is fine
    sample_tokens(logits, torch.full((2,), 0.5, dtype=torch.float64), 1.0, 1.0)


def test_random_numbers_are_open_and_depend_on_the_seed_alone() -> None:
    many = uniforms([3, 2**63 - 1, 0], 500)
    assert ((many > 0) & (many < 1)).all() and abs(many.mean() - 0.5) < 0.03
    assert np.array_equal(uniforms([0], 500)[0], many[2])
    assert np.array_equal(uniforms([3], 20)[0], many[0, :20])


# ---------------------------------------------------------------- independence of the batch
@pytest.mark.parametrize("budget", [1, 80, 150, 400, 100_000])
def test_a_completion_does_not_depend_on_its_neighbours(budget: int) -> None:
    alone = [
        [generate([prompt], [[seed]])[0][0] for seed in seeds]
        for prompt, seeds in zip(PROMPTS, SEEDS, strict=True)
    ]
    together = generate(budget=budget)
    for ours, theirs in zip(alone, together, strict=True):
        assert all(map(same, ours, theirs)) and len(ours) == len(theirs)
    lengths = {len(completion.ids) for each in alone for completion in each}
    assert len(lengths) > 3  # some leave the batch early


def test_a_sliding_window_model_is_independent_of_the_batch_too() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=6, initializer_range=0.5,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    together = generate(model=model)
    for prompt, seeds, each in zip(PROMPTS, SEEDS, together, strict=True):
        assert all(map(same, generate([prompt], [seeds], model=model)[0], each))


def test_seeds_decide() -> None:
    [first, again, other] = generate([[5, 6, 7]], [[1, 1, 2]], stop=())[0]
    assert same(first, again) and first.ids != other.ids
    counts = generate([[5], [6]], [[1, 2, 3], []])
    assert [len(each) for each in counts] == [3, 0]


def test_sample_seeds_differ_and_stay() -> None:
    seeds = {
        sample_seed(key, question, sample)
        for key in ("a", "b") for question in ("q1", "q11") for sample in range(50)
    }  # fmt: skip
    assert len(seeds) == 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed("key", "question", 7) == 8937629845319744044


# ---------------------------------------------------------------- how completions end
def test_finish_reasons() -> None:
    sampled = [c for each in generate(max_tokens=12) for c in each]
    assert {c.finish_reason for c in sampled} == {"stop", "length"}
    for completion in sampled:
        assert STOP not in completion.ids[:-1]
        assert len(completion.logprobs) == len(completion.ids)
        if completion.finish_reason == "stop":
            assert completion.ids[-1] == STOP and len(completion.ids) <= 12
        else:
            assert completion.ids[-1] != STOP and len(completion.ids) == 12


def test_a_stop_token_at_the_limit_is_a_stop() -> None:
    [whole] = generate([PROMPTS[0]], [[4]], stop=())[0]
    firsts = [i for i, token in enumerate(whole.ids) if token not in whole.ids[:i]]
    assert len(firsts) > 3
    for at in firsts:
        stop = (whole.ids[at],)
        [stopped] = generate([PROMPTS[0]], [[4]], max_tokens=at + 1, stop=stop)[0]
        assert (stopped.ids, stopped.finish_reason) == (whole.ids[: at + 1], "stop")
        if at:
            [cut] = generate([PROMPTS[0]], [[4]], max_tokens=at, stop=stop)[0]
            assert (cut.ids, cut.finish_reason) == (whole.ids[:at], "length")


def test_a_completion_ends_where_the_models_context_does() -> None:
    model = llama(max_position_embeddings=24)
    free = generate(stop=())
    assert {(len(c.ids), c.finish_reason) for each in free for c in each} == {(30, "length")}
    sampled = generate(model=model, stop=())
    assert len({len(prompt) for prompt in PROMPTS}) > 1
    for prompt, group, longer in zip(PROMPTS, sampled, free, strict=True):
        for completion, whole in zip(group, longer, strict=True):
            assert len(prompt) + len(completion.ids) == min(24, len(prompt) + len(whole.ids))
            assert completion.finish_reason == "length"
            assert completion.ids == whole.ids[: len(completion.ids)]
    with pytest.raises(ValueError, match=r"prompt 1 has 24 tokens .* context of 24"):
        generate([[1], [1] * 24], [[0], [0]], model=model)


# ---------------------------------------------------------------- models and control
def test_a_policy_in_training_keeps_its_mode_and_its_gradients() -> None:
    model = llama()
    model.config.attention_dropout = 0.5
    model.train()
    sampled = generate(model=model)
    assert model.training and all(map(same, sampled[0], generate()[0]))
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_progress_counts_completions_and_a_stop_request_ends_it() -> None:
    seen: list[tuple[int, int]] = []
    generate(budget=80, progress=Progress(report=lambda done, total, _: seen.append((done, total))))
    assert seen[-1] == (20, 20) and all(a < b for a, b in pairwise(seen)) and len(seen) > 5
    with pytest.raises(Stopped):
        generate(progress=Progress(should_stop=lambda: True))


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate([[1], []], [[0], [0]])
    with pytest.raises(ValueError, match="2 prompts, seeds for 1"):
        generate([[1], [2]], [[0]])
    assert generate([], []) == []


def test_an_engine_opens_a_model_folder(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(load_format("tiny"))
    save_model(new_model(ScratchModel(layers=1, width=32, heads=2), tokenizer), tokenizer, tmp_path)
    with open_engine(tmp_path, "float32", StageResources(device="cpu")) as engine:
        [[completion]] = engine.generate([[1, 2]], Sampling(max_tokens=5), [[1]], [])
    assert len(completion.ids) == 5


def test_without_vllm_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install rlt-pipeline\[vllm\]"):
        open_engine(tmp_path, "float32", StageResources(engine="vllm"))


def test_importing_the_interface_imports_no_torch() -> None:
    assert "torch" not in imported("import rlt_core.generation")
