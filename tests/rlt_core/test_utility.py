"""Measured utility of a trace: against torch's own AdamW, and what the ranks say of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
import torch

from rlt_core.config import ScratchModel
from rlt_core.errors import Stopped, UserError
from rlt_core.evaluation.utility import utility_by_rank
from rlt_core.models import new_model, tiny_tokenizer
from rlt_core.overrides import load_config
from rlt_core.progress import Progress
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import selected_logprobs, with_utility

RENDERER = Renderer(load_format("tiny"), tiny_tokenizer(load_format("tiny")))
SIZE = ScratchModel(layers=1, width=32, heads=2, seed=3)
QUESTIONS = {
    "a": {"question": "1+2", "solution": "3", "trace": None},
    "b": {"question": "4+4", "solution": "8", "trace": "44 is 8"},
    "c": {"question": "5+2", "solution": "7", "trace": "7"},
}
HELD_OUT = [QUESTIONS["b"], QUESTIONS["c"]]
TRACES = ("one and two make 3", "", "9")


def model() -> Any:
    return new_model(SIZE, RENDERER.tokenizer)


def held_out(student: Any) -> float:
    means = []
    for row in HELD_OUT:
        ids = RENDERER.encode_block(str(row["trace"]))
        context = RENDERER.student_context(str(row["question"]), ids, str(row["solution"]))
        assert context.solution
        ((found,),) = selected_logprobs(student, [context.ids], [[context.solution]], 1.0, 999)
        means.append(float(found.mean()))
    return sum(means) / 2


def test_utility_is_one_step_of_adamw_and_leaves_the_student_as_it_was() -> None:
    student, thoughts = model(), [RENDERER.encode_block(text) for text in TRACES]

    @contextmanager
    def load() -> Iterator[Any]:
        yield student

    rows = [{"question_id": "a", "sample": i} for i in range(len(TRACES) + 1)]
    given = rows, [*thoughts, None], QUESTIONS, HELD_OUT, RENDERER, load, 1e-3, 999
    *measured, other = with_utility(*given)
    found = [row["utility"] for row in measured]
    assert other == rows[-1]
    for weight, as_before in zip(student.parameters(), model().parameters(), strict=True):
        assert torch.equal(weight, as_before)
    for ids, utility in zip(thoughts, found, strict=True):
        stepped = model()
        row = RENDERER.student_sft_row("1+2", ids, "3")
        stepped(
            input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])
        ).loss.backward()
        torch.optim.AdamW(stepped.parameters(), lr=1e-3, weight_decay=0.0).step()
        assert utility == pytest.approx(held_out(stepped) - held_out(model()), abs=1e-5)
    assert len(set(found)) == len(TRACES) and max(map(abs, found)) > 1e-4
    with pytest.raises(Stopped):
        with_utility(*given, Progress(should_stop=lambda: True))


def test_ranks_that_order_utility_predict_it_and_shuffled_ones_do_not() -> None:
    def rows(order: Any) -> list[dict[str, Any]]:
        return [
            {"seed": 0, "question_id": f"q{q}", "rank": rank, "utility": order(q, rank)}
            for q in range(40)
            for rank in range(1, 9)
        ]

    means, metrics = utility_by_rank(rows(lambda q, rank: -rank + q))
    assert metrics["utility_spearman"] == pytest.approx(1) and means[0, 1] > means[0, 8]
    chance = Random(0)
    _, metrics = utility_by_rank(rows(lambda q, rank: chance.random()))
    assert metrics["utility_spearman_low"] < 0 < metrics["utility_spearman_high"]
    assert metrics["utility_questions"] == 40
    assert utility_by_rank(rows(lambda q, rank: None)) == ({}, {})
    assert utility_by_rank(rows(lambda q, rank: 1.0))[1] == {}


def test_utility_without_held_out_questions_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="n_validation is 0"):
        load_config("smoke", ["trace_scoring.utility_questions=8", "data.n_validation=0"])
