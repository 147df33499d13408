"""The step of a published shape runs on a CPU with a tiny shape, and its estimate is the plan's."""

from infra.benchmarks import paper_step


def test_a_step_of_a_small_shape() -> None:
    config = paper_step.settings(questions=2, completions=4, tokens=16, device="cpu")
    step = paper_step.measure_step(paper_step.TINY, config)
    assert [row["step"] for row in step.training.steps] == [1, 2, 3]
    assert all(row["loss"] is not None and row["seconds"] > 0 for row in step.training.steps)
    assert len(step.training.first_rewards) == 8 and step.training.scoring_s > 0
    assert step.peak_bytes is None
    said = paper_step.describe(config, step)
    assert "2 questions x 4 completions of 16 tokens" in said and "tokens/s" in said


def test_a_larger_model_is_estimated_to_take_more() -> None:
    config = paper_step.settings(questions=2, completions=4, tokens=16, device="cuda")
    small, large = (
        paper_step.estimated_bytes(f"Qwen/Qwen2.5-{size}-Instruct", config)
        for size in ("1.5B", "7B")
    )
    assert 2**30 < small < large
