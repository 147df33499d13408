"""Whether explanations lead to the solution: against its definition, one context at a time."""

from contextlib import nullcontext
from typing import Any

import pytest

from rlt_core.config import RewardSpec, ScratchModel
from rlt_core.models import new_model, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.scoring import ContextBuilder, score_contexts, selected_logprobs, with_anchoring
from rlt_core.scoring.anchoring import _solved_at, wrong_solution

FORMAT = load_format("tiny")
RENDERER = Renderer(FORMAT, tiny_tokenizer(FORMAT))
STUDENT = new_model(ScratchModel(layers=1, width=32, heads=2, seed=3), RENDERER.tokenizer)
QUESTIONS = {
    "a": {"question": "1+2", "solution": "3"},
    "b": {"question": "which", "solution": "none"},
    "c": {"question": "2*50", "solution": "x=100."},
}


def trace(question: str, sample: int, text: str) -> dict[str, Any]:
    return {
        "trace_id": f"{question}-{sample}", "question_id": question, "seed": 0, "teacher": "t",
        "sample": sample, "text": text, "closed": True, "finish_reason": "stop",
    }  # fmt: skip


def mean(question: str, ids: list[int], solution: str) -> float:
    context = RENDERER.student_context(QUESTIONS[question]["question"], ids, solution)
    assert context.solution
    (found,) = selected_logprobs(STUDENT, [context.ids], [[context.solution]], 0.7, 999)
    return float(found[0].mean())


def test_both_measures_are_those_of_their_definition() -> None:
    texts = [("a", "one and two make 3"), ("b", ""), ("c", "y" * 300), ("c", "twice fifty")]
    traces = [trace(question, i, text) for i, (question, text) in enumerate(texts)]
    builder = ContextBuilder(RENDERER, RENDERER)
    contexts = [
        builder.contexts(*QUESTIONS[one["question_id"]].values(), one["text"]) for one in traces
    ]
    rows = score_contexts(
        traces, contexts, student="s", load_student=lambda: nullcontext(STUDENT),
        load_teacher=lambda: nullcontext(STUDENT), spec=RewardSpec(), max_tokens=200,
        tokens_per_batch=999,
    )  # fmt: skip
    found = with_anchoring(
        rows, contexts, QUESTIONS, RENDERER, lambda: nullcontext(STUDENT), 0.7, 400
    )
    assert [row["status"] == "scored" for row in found] == [True, True, False, True]
    assert found[2]["anchor_gap"] is None and found[2]["solved_at"] is None
    wrongs = {"a": "4", "b": "3", "c": "x=101."}
    for row, each in zip(found, traces, strict=True):
        if row["status"] != "scored":
            continue
        name, ids = each["question_id"], RENDERER.encode_block(each["text"])
        right = QUESTIONS[name]["solution"]
        gap = mean(name, ids, right) - mean(name, ids, wrongs[name])
        assert row["anchor_gap"] == pytest.approx(gap, abs=1e-4)
        parts = [mean(name, ids[: int(f * len(ids))], right) for f in (0, 0.25, 0.5, 0.75, 1)]
        assert row["solved_at"] == _solved_at(parts) or abs(parts[-1] - parts[0]) < 1e-4
        assert {name: row[name] for name in rows[0] if name not in ("anchor_gap", "solved_at")} == {
            name: one for name, one in rows[traces.index(each)].items()
            if name not in ("anchor_gap", "solved_at")
        }  # fmt: skip


@pytest.mark.parametrize(
    "means, at",
    [([-9, -2, -2, -2, -1], 0.25), ([-9, -8, -7, -6, -1], 1.0), ([-9, -9, -5, -1, -1], 0.5),
     ([-1, -1, -1, -1, -2], None), ([-2, -2, -2, -2, -2], None)],
)  # fmt: skip
def test_an_announced_solution_is_predictable_early(means: list[float], at: float | None) -> None:
    assert _solved_at(means) == at


def test_a_wrong_solution_differs() -> None:
    assert wrong_solution("so 3 of 99", []) == "so 3 of 100"
    assert wrong_solution("0.5", ["7"]) == "0.6"
    assert wrong_solution("7" * 5000, []) == "7" * 4999 + "8"
    assert wrong_solution("yes", ["yes ", "no"]) == "no"
    assert wrong_solution("yes", ["yes"]) is None
