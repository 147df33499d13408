"""Fields of `evaluation`: a task's own number of completions, prompts; what keys know of them."""

import pytest

from rlt_core.errors import UserError
from rlt_core.experiments import targets
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config
from rlt_core.stages import EvaluationStageConfig


def evaluations(*assignments: str, target: str = "full-pipeline") -> dict[str, Node]:
    nodes = upstream(targets(target, load_config("smoke", assignments)))
    return {node.name: node for node in nodes if node.stage.name == "evaluation"}


def test_no_samples_of_its_own_leave_the_key() -> None:
    base = evaluations()["evaluation[base]"]
    assert "samples" not in base.config.model_dump(mode="json")["evaluation"]
    assert evaluations("evaluation.samples={}")["evaluation[base]"].key == base.key
    assert evaluations("evaluation.samples.test=3")["evaluation[base]"].key != base.key


def test_the_prompts_are_part_of_the_key() -> None:
    asked = {
        evaluations(*change)["evaluation[base]"].key
        for change in ((), ("evaluation.prompts=lighteval",), ("evaluation.prompts=skythought",))
    }
    assert len(asked) == 2
    with pytest.raises(UserError, match=r"evaluation\.prompts"):
        load_config("smoke", ["evaluation.prompts=simple-evals"])


def test_an_evaluation_knows_only_the_samples_of_its_own_tasks() -> None:
    names = ('evaluation.samples={"test": 3, "countdown": 2}',)
    ranked = evaluations(*names, target="rank-ablation")
    for node in ranked.values():
        assert isinstance(node.config, EvaluationStageConfig)
        tasks = node.config.evaluation.tasks
        assert node.config.evaluation.samples.keys() == set(tasks)
        EvaluationStageConfig.model_validate(node.config.model_dump(mode="json"))
    asked = {node.config.evaluation.tasks for node in ranked.values()}  # type: ignore[attr-defined]
    assert ("test",) in asked


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("evaluation.samples.tset=4", "`samples` names tset, not among `tasks`"),
        ("evaluation.samples.test=0", "evaluation.samples.test: .*greater than 0"),
        ("evaluation.pass_at=[1,9]", "pass@9 needs as many .* test has 1: raise `n` or `samples"),
        ("evaluation.smaples.test=4", "unknown field"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_runs(
    assignment: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_config("smoke", [assignment])


def test_pass_at_k_holds_for_every_task() -> None:
    set_ = ["evaluation.pass_at=[3]", "evaluation.n=2", "evaluation.samples.test=3"]
    with pytest.raises(UserError, match="countdown has 2"):
        load_config("smoke", set_)
    assert load_config("smoke", [*set_, "evaluation.samples.countdown=3"]).evaluation.pass_at == (
        3,
    )
