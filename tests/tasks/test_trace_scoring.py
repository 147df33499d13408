"""Teacher and student of different families, and traces whose teacher nobody has, by real runs."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlt_core.config import RewardSpec, ScoringConfig, ScratchModel
from rlt_core.errors import UserError
from rlt_core.explain import explain
from rlt_core.models import new_model, save_model, tiny_tokenizer
from rlt_core.prompts.format import load_format
from rlt_core.prompts.renderer import Renderer
from rlt_core.reward.replay import chosen, replayed
from rlt_core.rows import read_rows
from rlt_core.stages import TraceScoringConfig
from rlt_core.store import Manifest, Ref, Store
from tests.merging_tokenizer import merging_tokenizer
from tests.sample_store import row
from tests.tasks.nodes import committed, node_spec, run, table

FORMAT = load_format("tiny")
TEXTS = ("one and two make 3", "hm: 3", "because", "")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def a_model(store: Store, digit: str, tokenizer: PreTrainedTokenizerFast) -> Ref:
    """Commit a random model with a tokenizer."""
    size = ScratchModel(layers=1, width=32, heads=2, seed=int(digit))
    model = new_model(size, tokenizer)
    ref = Ref(kind="model", key=digit * 16)
    return committed(store, ref, lambda out: save_model(model, tokenizer, out / "model"))


def scores(
    store: Store,
    student: Ref,
    teacher: Ref | None,
    own: str = "so 3",
    split: str = "train",
    **reward: Any,
) -> Manifest:
    """Score TEXTS, which the teacher wrote."""
    writer = Renderer(FORMAT, tiny_tokenizer(FORMAT))
    question, held_out = (
        row(
            "questions", question_id=name, split=split, question="1+2", solution="3", answer="3",
            grader="arithmetic", trace=own,
        )
        for name, split in (("q", split), ("v", "validation"))
    )  # fmt: skip
    traces = [
        row(
            "traces", trace_id=f"q-{sample}", question_id="q", seed=0, teacher="t", sample=sample,
            text=text, token_ids=writer.encode_block(text), closed=True, finish_reason="stop",
        )
        for sample, text in enumerate(TEXTS)
    ]  # fmt: skip
    inputs = {
        "questions": committed(
            store, Ref(kind="dataset", key="a" * 16), table("questions", [question, held_out])
        ),
        "traces": committed(store, Ref(kind="traces", key="b" * 16), table("traces", traces)),
        "student": student,
    } | ({"teacher": teacher} if teacher else {})
    config = TraceScoringConfig(
        reward=RewardSpec(**reward), 
        scoring=ScoringConfig(max_tokens=2000, anchoring=True, utility_questions=1),
        format=FORMAT, seed=0,
    )  # fmt: skip
    return run(node_spec(store, "trace-scoring", config, inputs))


def test_models_of_different_families_score_each_other(store: Store) -> None:
    characters = a_model(store, "1", tiny_tokenizer(FORMAT))
    merging = a_model(store, "2", merging_tokenizer([("o", "n"), ("on", "e"), ("a", "n")]))
    with pytest.raises(UserError, match=r"reward\.alignment=text"):
        scores(store, merging, characters)
    made = scores(store, merging, characters, alignment="text")
    rows = read_rows(store.intact(made), "scores")
    assert [one["rank"] for one in rows if one["rank"]] and made.metrics["scored"] == len(TEXTS)
    first = rows[0]
    assert first["think_span_ends"][-1] == len(TEXTS[0])
    spans = len(first["think_span_ends"])
    assert spans < len(TEXTS[0]) and len(first["teacher_think_logprobs"]) == spans
    # Without a model the stored log-probs give the rewards again, and the spans are shown as text.
    with replayed(store, chosen(store, [made.ref.key]), {}) as connection:
        again = connection.sql("select reward, stored_reward from replayed").fetchall()
    assert len(again) == len(TEXTS) and all(a == pytest.approx(b, abs=1e-9) for a, b in again)
    shown = explain(store, "q-0").explanation
    assert "".join(token.text for token in shown) == TEXTS[0] and "one" in shown[0].text


def test_traces_without_their_teacher_are_ranked_by_what_is_known(store: Store) -> None:
    made = scores(store, a_model(store, "1", tiny_tokenizer(FORMAT)), None)
    rows = read_rows(store.intact(made), "scores")
    assert all(one["utility"] is not None for one in rows) and "utility" in made.metrics
    assert all(one["anchor_gap"] is not None for one in rows) and "anchor_gap" in made.metrics
    assert {one["rank"] for one in rows} == {1, 2, 3, 4} and "mean_r_kl" not in made.metrics
    assert all(one["reward"] == one["r_ss"] and one["r_kl"] is None for one in rows)
    with replayed(store, chosen(store, [made.ref.key]), {"alpha": 0.0}) as connection:
        (found,) = connection.sql(
            "select reward, r_ss, r_kl from replayed where trace_id = 'q-0'"
        ).fetchall()
    assert found == (pytest.approx(rows[0]["solution_mean"]), pytest.approx(found[0]), None)
    shown = explain(store, "q-0")
    assert [part.name for part in shown.parts] == [
        "mean log p(solution)", "min log p(solution)", "penalty"
    ]  # fmt: skip
    assert "".join(token.text for token in shown.explanation) == TEXTS[0]
    assert shown.explanation[0].teacher is None and shown.most_surprising is None


@pytest.mark.parametrize("own", ["so 4", None])
def test_utility_is_not_measured_after_wrong_explanations(store: Store, own: Any) -> None:
    with pytest.raises(UserError, match="arrives at the solution, and the data has none"):
        scores(store, a_model(store, "1", tiny_tokenizer(FORMAT)), None, own)


def test_traces_of_held_out_questions_have_no_utility(store: Store) -> None:
    student = a_model(store, "1", tiny_tokenizer(FORMAT))
    made = scores(store, student, None, split="validation")
    assert all(one["utility"] is None for one in read_rows(store.intact(made), "scores"))
