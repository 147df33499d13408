"""Rewards against a slow oracle in float64, and what is refused."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import FORMAT, TEACHER, scratch_folder

from rlt_core.config import CorrectnessReward, RewardSpec, ScratchModel, StageResources
from rlt_core.errors import UserError
from rlt_core.generation import Completion
from rlt_core.grading import Grade, GradeItem, Grader
from rlt_core.models import load_model, new_model, save_model, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import ContextBuilder, score_contexts
from rlt_core.training.answer_reward import AnswerReward
from rlt_core.training.reward_function import Prompt
from rlt_core.training.rlt_reward import RLTReward
from tests.merging_tokenizer import merging_tokenizer

SPEC = RewardSpec(temperature=0.7)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scratch_folder(tmp_path_factory.mktemp("student"), seed=1)


@pytest.fixture
def reward(renderer: Renderer, student: Path, resources: StageResources) -> RLTReward:
    return RLTReward(renderer, student, SPEC, TEACHER, resources=resources)


def prompt_of(renderer: Renderer, question: str, solution: str) -> Prompt:
    ids = renderer.teacher_prompt(question, solution)
    return Prompt(question, ids, {"question": question, "solution": solution})


def slow_logprobs(folder: Path, before: list[int], target: list[int]) -> np.ndarray:
    """log p(target | before) token by token, at the spec's temperature."""
    model = load_model(folder).double()
    logits = model(torch.tensor([before + target])).logits[0] / SPEC.temperature
    rows = logits.log_softmax(-1)[len(before) - 1 : -1]
    return rows[torch.arange(len(target)), target].detach().numpy()


def written(completions: list[list[int]]) -> list[Completion]:
    """With log-probs of sampling that would spoil whatever used them."""
    return [Completion(ids, "stop", np.full(len(ids), np.nan, np.float32)) for ids in completions]


def test_rewards_equal_the_oracle(reward, renderer, model: Path, student: Path) -> None:
    encode = renderer.encode
    close = encode("") + renderer._encode_fixed(FORMAT.explanation_close) + [renderer.end_of_turn]
    cases = [
        ("1+2=?", "3", encode("one and two"), True),
        ("20+30=?", "50", encode("twenty"), False),
        ("7+1=?", "8", [], True),
    ]
    prompts = [prompt_of(renderer, question, solution) for question, solution, *_ in cases]
    completions = [think + (close if closed else []) for *_, think, closed in cases]
    result = reward(prompts, written(completions), load_model(model))
    for i, (question, solution, think, closed) in enumerate(cases):
        chat = renderer.student_prompt(question) + renderer._encode_fixed("<think>")
        after = chat + think + renderer._encode_fixed("</think><solution>")
        s = slow_logprobs(student, after, encode(solution))
        r_ss = s.mean() + 0.01 * s.min()
        if think:
            k = slow_logprobs(model, prompts[i].ids, think) - slow_logprobs(student, chat, think)
            r_kl = k.mean() + 0.01 * k.max()
        else:
            r_kl = 1.01
        expected = r_ss - 3 * r_kl - (not closed)
        assert result.rewards[i] == pytest.approx(expected, abs=1e-4)
        assert result.rows[i]["r_ss"] == pytest.approx(r_ss, abs=1e-4)
        assert result.rows[i]["unclosed"] == float(not closed)


def test_the_full_kl_trains_too(reward, renderer, model: Path, student: Path, resources) -> None:
    full = SPEC.model_copy(update={"kl": "full"})
    prompts = [prompt_of(renderer, "1+2=?", "3")]
    completions = [renderer.encode("one and two")]
    exact = RLTReward(renderer, student, full, TEACHER, resources=resources)
    found = exact(prompts, written(completions), load_model(model))
    k1 = reward(prompts, written(completions), load_model(model))
    for row, other in zip(found.rows, k1.rows, strict=True):
        assert row["solution_mean"] == other["solution_mean"]
        assert row["kl_mean"] != other["kl_mean"]
    assert found.rows[0]["kl_mean"] > 0


def test_diagnostics_are_recorded_with_the_parts(reward, renderer, model: Path) -> None:
    cases = [
        ("1+2=?", "3", "wait, one and two"),
        ("count", "one, two, three", "so one, two, three then"),
        ("loop", "forty-two", "wait, wait. " * 20),
    ]
    prompts = [prompt_of(renderer, question, solution) for question, solution, _ in cases]
    completions = [renderer.encode(text) for *_, text in cases]
    rows = reward(prompts, written(completions), load_model(model)).rows
    parts = {name: [row[name] for row in rows] for name in ("copied", "compression", "doubt")}
    assert parts["copied"] == [None, 1.0, 0.0]
    assert parts["compression"][:2] == [None, None] and parts["compression"][2] > 6
    assert parts["doubt"] == pytest.approx([1000 / 17, 0.0, 1000 * 40 / 240])


@pytest.mark.parametrize("who", ["student", "policy"])
def test_what_is_not_finite_names_the_completion(
    reward, renderer, model: Path, who: str, student: Path
) -> None:
    """An embedding that is read in one of three contexts alone is no number."""
    prompts = [prompt_of(renderer, f"{a}+2=?", "3") for a in (1, 9, 4)]
    completions = [renderer.encode("one and two")] * 3
    policy = load_model(model)
    broken = reward._student if who == "student" else policy
    untied = torch.nn.Parameter(broken.get_output_embeddings().weight.detach().clone())
    broken.get_output_embeddings().weight = untied
    with torch.no_grad():
        broken.get_input_embeddings().weight[renderer.encode("9")[0]] = float("nan")
    with pytest.raises(RuntimeError, match=r"^question 9\+2=\?: .*token 0 is not finite"):
        reward(prompts, written(completions), policy)


def test_another_vocabulary_is_refused(renderer, tmp_path: Path, resources) -> None:
    tokenizer = tiny_tokenizer(load_format("r1"))
    config = ScratchModel(layers=1, width=16, heads=2)
    save_model(new_model(config, tokenizer), tokenizer, tmp_path)
    with pytest.raises(UserError, match="different vocabularies"):
        RLTReward(renderer, tmp_path, SPEC, TEACHER, resources=resources)


def test_a_completion_that_might_not_fit_is_refused(reward, renderer) -> None:
    prompt = prompt_of(renderer, "1+2=?", "3")
    reward.check([prompt], 50)
    with pytest.raises(UserError, match=r"question 1\+2=\?.*lower max_completion_tokens by"):
        reward.check([prompt], 160)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


def answer_prompt(renderer: Renderer) -> Prompt:
    row = {"question": "1+2=?", "answer": "3", "grader": "arithmetic", "metadata": None}
    return Prompt("q1", renderer.student_prompt("1+2=?"), row)


def test_correctness(renderer: Renderer, grader: Grader) -> None:
    reward = AnswerReward(renderer, CorrectnessReward(), grader)
    texts = ["<think>x</think><solution>3</solution>", "<think>x</think><solution>4</solution>",
             "<think>x</think>3"]  # fmt: skip
    completions = [[*renderer._encode_fixed(text), renderer.end_of_turn] for text in texts]
    prompts = [answer_prompt(renderer)] * 3
    result = reward(prompts, written(completions), torch.nn.Identity())
    assert result.rewards == [1.0, -0.5, -1.0]
    columns = {"unclosed": [0, 0, 1], "correct": [1, 0, 0], "grader_failed": [0, 0, 0]}
    for name, values in columns.items():
        assert [row[name] for row in result.rows] == values


def test_a_broken_grader_stops_the_run_and_a_hanging_answer_does_not(renderer: Renderer) -> None:
    class Hanging(Grader):
        broken = True

        def grade_many(self, items: Sequence[GradeItem]) -> list[Grade]:
            return [Grade("grader_failed") for _ in items]

        def self_check(self, questions: Sequence[Any]) -> list[int]:
            return [*range(len(questions))] if self.broken else super().self_check(questions)

    text = "<think>x</think><solution>3</solution>"
    ids = [*renderer._encode_fixed(text), renderer.end_of_turn]
    batch = ([answer_prompt(renderer)], written([ids]))
    with Hanging() as grader:
        reward = AnswerReward(renderer, CorrectnessReward(), grader)
        with pytest.raises(RuntimeError, match="the grader failed on 1 of 1"):
            reward(*batch, torch.nn.Identity())
        grader.broken = False
        assert reward(*batch, torch.nn.Identity()).rewards == [-0.5]


def test_a_student_of_another_tokenizer_rewards_text(
    renderer, model: Path, student: Path, resources, tmp_path: Path
) -> None:
    """The same as `trace-scoring` computes; with one tokenizer, what token ids give."""
    tokenizer = merging_tokenizer([("o", "n"), ("on", "e"), ("1", "2")])
    other = new_model(ScratchModel(layers=1, width=32, heads=2), tokenizer)
    save_model(other, tokenizer, tmp_path / "other")
    as_text = SPEC.model_copy(update={"alignment": "text"})
    explanations = ["one and 12", "no é", ""]
    prompts = [prompt_of(renderer, f"{i}+2=?", str(i + 2)) for i in range(3)]
    completions = [
        [*renderer.encode_block(text), *renderer._encode_fixed(FORMAT.explanation_close)]
        for text in explanations
    ]

    def rewards(student: Path, spec: RewardSpec) -> list[float]:
        made = RLTReward(renderer, student, spec, TEACHER, resources=resources)
        return made(prompts, written(completions), load_model(model)).rewards

    with pytest.raises(UserError, match=r"alignment=text"):
        rewards(tmp_path / "other", SPEC)
    assert rewards(student, as_text) == pytest.approx(rewards(student, SPEC), abs=1e-6)
    builder = ContextBuilder(Renderer(FORMAT, tokenizer), renderer, "text")
    scored = score_contexts(
        [
            {"trace_id": "t", "question_id": "q", "seed": 0, "teacher": "t", "sample": i,
             "text": text, "closed": True, "finish_reason": "stop"}
            for i, text in enumerate(explanations)
        ],
        [
            builder.contexts(*prompt.row.values(), text, renderer.encode_block(text))
            for prompt, text in zip(prompts, explanations, strict=True)
        ],
        student="s", load_student=lambda: nullcontext(load_model(tmp_path / "other")),
        load_teacher=lambda: nullcontext(load_model(model)), spec=as_text, max_tokens=999,
        tokens_per_batch=999,
    )  # fmt: skip
    expected = [row["reward"] for row in scored]
    assert rewards(tmp_path / "other", as_text) == pytest.approx(expected, abs=1e-4)
