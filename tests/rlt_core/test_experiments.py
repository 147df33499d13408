"""The paper's experiments as graphs: what they share, what they compare, and that all can plan."""

import re
from pathlib import Path

import pytest

from rlt_core.errors import UserError
from rlt_core.experiments import ALL, EXPERIMENTS, PAPER, nodes_of_stage, targets
from rlt_core.experiments.nodes import Nodes
from rlt_core.graph import Node, upstream
from rlt_core.overrides import load_config
from rlt_core.profiles import PROFILES
from rlt_core.stages import (
    DatasetPrepConfig,
    ReportConfig,
    StudentSFTStageConfig,
    TraceScoringConfig,
)

GIVEN = f"hub:a/b@{'0' * 40}"


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """A file for the profiles that bring no questions of their own."""
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "1+1", "solution": "2"}\n')
    return str(file)


def graph(name: str, profile: str = "smoke", *changes: str) -> dict[str, Node]:
    """Every node of an experiment by name."""
    return {node.name: node for node in upstream(targets(name, load_config(profile, changes)))}


def shown(name: str, profile: str = "smoke", *changes: str) -> ReportConfig:
    """What an experiment's report is to show."""
    (report,) = targets(name, load_config(profile, changes))
    assert isinstance(report.config, ReportConfig)
    return report.config


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_profile_can_plan_every_experiment(name: str, profile: str, questions: str) -> None:
    changes = []
    if load_config(profile, []).data.source == "questions.jsonl":
        changes = [f"data.source={questions}", "data.n_validation=0", "data.n_test=0"]
    if profile in ("laptop", "smol-science", "teach"):  # their package may not be installed
        changes.append(f"base_model=hub:HuggingFaceTB/SmolLM2-135M-Instruct@{'0' * 40}")
    nodes = upstream(targets(name, load_config(profile, changes)))
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names), "a report finds its inputs by name"


def test_the_reward_student_may_be_trained_on_the_data_sets_traces_first() -> None:
    """It is then the seed's student of those traces, which the table has anyway."""
    seeds, sft = "seeds=[0,1]", "reward_student_sft=true"
    plain, trained = (graph("full-pipeline", "smoke", seeds, *more) for more in ((), (sft,)))
    assert all(
        plain[f"teacher-grpo@{seed}"].inputs["student"].name == "base-model" for seed in (0, 1)
    )
    for seed in (0, 1):
        student = trained[f"student-sft[dataset]@{seed}"]
        assert student.key == plain[student.name].key
        for reader in ("teacher-grpo", "trace-scoring[rlt]", "trace-scoring[sft]"):
            assert trained[f"{reader}@{seed}"].inputs["student"].key == student.key
    other = graph("full-pipeline", "smoke", sft, f"reward_student=hub:a/b@{'0' * 40}")
    student = other["teacher-grpo@0"].inputs["student"]
    assert student.name == "student-sft[reward-student]@0"
    assert student.inputs["model"].name == "base-model[reward-student]"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("countdown", "countdown=null", r"countdown\.data\.n_test"),
        ("table-2", "student_grpo=null", r"student_grpo\.steps"),
        ("rank-ablation", "rank_ablation=null", r"rank_ablation\.ranks"),
        ("reward-ablation", "reward_ablation=null", r"reward_ablation\.kl_weights"),
        (ALL, "countdown=null", r"countdown\.data\.n_test"),
        ("bench-teachers", "teacher_bench.students.x=scratch", r"set teacher_bench\.teachers"),
        ("teacher-grp", "seeds=[0]", "'teacher-grpo'"),
        ("student-grpo", "student_grpo=null", "has no student-grpo node with these settings"),
        ("trace-selection", "seeds=[0]", "has no trace-selection node .* that has: teach$"),
        ("trace-refinement", "seeds=[0]", "has no trace-refinement node .*; nor has another"),
        (
            "table-1",
            'evaluation.tasks=["test","aime25"]',
            r"evaluation\.tasks: .*'aime25'.* 'aime24'",
        ),
        ("full-pipeline", "evaluation.files.mean=a.jsonl", r"benchmarks\.mean: the name is taken"),
        (
            "full-pipeline",
            "evaluation.files.aime24=a.jsonl",
            r"benchmarks\.aime24: the name is tak",
        ),
        ("table-1", 'evaluation.tasks=["test","test"]', "'test' is named twice"),
        ("countdown", "countdown.data.n_test=0", r"countdown\.data\.n_test"),
        ("table-1", "evaluation.tasks=[]", r"evaluation\.tasks: .* names no task.* test"),
        ("table-1", "teacher_sft.traces=a.jsonl", r"teacher_sft\.traces='a\.jsonl': no such file"),
        ("full-pipeline", "imports.traces.r1=a.jsonl", r"imports\.traces\.r1='a\.jsonl': no such"),
        ("full-pipeline", "imports.scores.r1=a.jsonl", r"imports\.scores\.r1='a\.jsonl': no such"),
    ],
)
def test_what_is_missing_is_named(name: str, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        targets(name, load_config("smoke", [change]))


@pytest.mark.parametrize(
    ("name", "changes", "clash"),
    [
        ("full-pipeline", [f"imports.models.base={GIVEN}"], "evaluation[base]"),
        ("full-pipeline", [f"imports.models.rlt={GIVEN}"], "evaluation[rlt]"),
        ("full-pipeline", [f"imports.models.rank-1={GIVEN}"], "evaluation[rank-1]"),
        ("full-pipeline", [f"imports.models.student={GIVEN}", "student.kind=scratch"],
         "base-model[student]"),
        ("full-pipeline", ["imports.traces.dataset=FILE"], "student-sft[dataset]"),
        ("full-pipeline", ["imports.traces.x=FILE", f"imports.models.x={GIVEN}"], "evaluation[x]"),
        ("full-pipeline", ["endpoint_teacher.model=m", "endpoint_teacher.name=rlt"],
         "student-sft[rlt]"),
        ("table-1", [f"imports.models.base-large={GIVEN}"], "evaluation[base-large]"),
        ("table-1", ["trace_sources.rlt.data.source=arithmetic-s1"], "student-sft[rlt]"),
        ("bench-teachers",
         ["teacher_bench.teachers.x=scratch", f"teacher_bench.students.x={GIVEN}"],
         "base-model[x]"),
        (ALL, ["trace_sources.raw.data.source=arithmetic-s1"], "student-sft[raw]"),
    ],
)  # fmt: skip
def test_a_name_that_another_node_has_is_refused(
    name: str, changes: list[str], clash: str, questions: str
) -> None:
    given = [change.replace("FILE", questions) for change in changes]
    with pytest.raises(UserError, match=re.escape(f"two nodes would be named '{clash}'")):
        graph(name, "smoke", *given)


def test_a_benchmark_s_file_never_takes_the_place_of_the_data(
    tmp_path: Path, questions: str
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "1+2", "answer": "3"}\n')
    own = (f"data.source={questions}", f"evaluation.files.source={other}")
    node = graph("full-pipeline", "smoke", *own)["dataset-prep"]
    config = node.config
    assert isinstance(config, DatasetPrepConfig)
    assert config.data.located(node.paths).source == questions
    assert config.benchmarks["source"].located(node.paths).source == str(other)


def test_a_stage_alone_can_be_any_experiment_s() -> None:
    variants = {
        node.variant
        for node in nodes_of_stage("student-sft", load_config("smoke", ["countdown=null"]))
    }
    assert {"rlt", "raw", "solution-only", "random-rank-1"} <= variants


@pytest.mark.parametrize("name", ["table-1", "table-2", "countdown", "rank-ablation"])
def test_without_traces_in_the_data_their_students_are_rows_with_the_reason(
    name: str, questions: str
) -> None:
    own = (f"data.source={questions}", "teacher_sft.traces=none")
    rows = {row.model: row for row in shown(name, "smoke", *own).rows}
    of_data = {model for model in rows if "dataset" in re.split("[-+]", model)}
    assert of_data == {model for model, row in rows.items() if "no traces of its own" in (
        row.missing or "")}  # fmt: skip
    assert not any("[dataset" in node for node in graph(name, "smoke", *own))
    traced = shown(name, "smoke", *own, "data.fields.trace=solution")
    assert not any(row.missing for row in traced.rows if row.model in of_data)


@pytest.mark.parametrize("name", [one for one in PAPER if one != "compare-traces"])
def test_every_row_has_its_evaluations_or_a_reason(name: str) -> None:
    config = load_config("smoke", ["seeds=[3,4]"])
    (report,) = targets(name, config)
    assert isinstance(report.config, ReportConfig)
    rows = report.config.rows
    models = [row.model for row in rows]
    assert len(set(models)) == len(models)
    for row in rows:
        made = [
            node
            for node in report.inputs.values()
            if (node.stage.name, node.variant) == ("evaluation", row.model)
        ]
        seeds = {node.seed for node in made}
        if row.missing:
            assert not made
        else:
            assert seeds == ({3, 4} if row.trained else {None}), row
        assert row.baseline is None or row.baseline in models
    if report.config.primary:
        assert report.config.primary in models


def test_experiments_share_what_is_the_same() -> None:
    pipeline, one, two = graph("full-pipeline"), graph("table-1"), graph("table-2")
    for name in ("teacher-grpo@0", "trace-generation[rlt]@0", "student-sft[rlt]@0"):
        assert pipeline[name].key == one[name].key == two[name].key
    assert pipeline["evaluation[rlt+rl]@0"].key == two["evaluation[rlt+rl]@0"].key
    assert (
        pipeline["evaluation[rank-2]@0"].key == graph("rank-ablation")["evaluation[rank-2]@0"].key
    )
    separate = {node.key for name in PAPER for node in graph(name).values()}
    assert {node.key for node in upstream(targets(ALL, load_config("smoke")))} == separate


@pytest.mark.parametrize(
    "changes",
    [
        (), ("trace_generation.n=4",), ("reward_student_sft=true",), ("reward.kl=full",),
        ("trace_scoring.off_policy_kl=k1",), (f"student={GIVEN}",), ("teacher_sft.traces=none",),
    ],
)  # fmt: skip
def test_a_name_is_of_one_node_in_all_experiments(changes: tuple[str, ...]) -> None:
    """`{profile}/{name}` is a reference in the store: two artifacts may not share one."""
    keys: dict[str, set[str]] = {}
    for name in EXPERIMENTS:
        for node in graph(name, "smoke", *changes).values():
            keys.setdefault(node.name, set()).add(node.key)
    assert {name for name, found in keys.items() if len(found) > 1} == set()


def test_table_1_stands_in_the_paper_s_order() -> None:
    rows = shown("table-1", "paper-7b").rows
    assert [row.paper for row in rows if row.paper] == [
        "QwQ-32B", "DeepSeek-R1", "Qwen2.5-7B-Instruct", "Bespoke-7B-1K", "RLT-7B-1K",
        "Bespoke-7B", "RLT-7B", "Qwen2.5-32B-Instruct", "s1-32B + budget forcing",
        "Bespoke-32B-1K", "RLT-32B-1K", "Sky-T1-32B", "Bespoke-32B", "RLT-32B",
    ]  # fmt: skip


@pytest.mark.parametrize("profile", ["smoke", "tiny", "paper-7b", "paper-32b"])
def test_every_number_of_continuations_is_a_row_and_only_those_of_s1(profile: str) -> None:
    forced: dict[str, list[int]] = {}
    for node in graph("table-1", profile).values():
        budget = node.stage.name == "evaluation" and node.config.evaluation.budget  # type: ignore[attr-defined]
        if budget:
            assert (
                node.variant == f"{node.inputs['model'].variant}-continued-{budget.continuations}"
            )
            forced.setdefault(node.inputs["model"].variant, []).append(budget.continuations)
    assert forced.keys() == ({"s1"} if profile == "paper-32b" else {"s1", "s1-large"})
    assert all(sorted(times) == [1, 2, 4, 6] for times in forced.values())
    rows = {row.model: row for row in shown("table-1", profile).rows}
    assert all(row.paper is None for model, row in rows.items() if "-continued-" in model)
    quoted = [row for row in rows.values() if row.paper == "s1-32B + budget forcing"]
    assert [bool(row.missing) for row in quoted] == [True] * profile.startswith("paper-")


SELF = {"QwQ-32B", "DeepSeek-R1"}
FULL = ("student_sft_subset=null", "larger_student=null")


@pytest.mark.parametrize(
    ("profile", "changes", "quoted"),
    [
        ("smoke", (), set()),
        ("tiny", (), set()),
        ("paper-7b", FULL, {"Qwen2.5-7B-Instruct", "Bespoke-7B", "RLT-7B"}),
        ("paper-7b", (*FULL, "student=hub:Qwen/Qwen2.5-1.5B-Instruct"), set()),
        ("paper-7b", (*FULL, "base_model=hub:Qwen/Qwen3-8B"), {"Qwen2.5-7B-Instruct"}),
        ("paper-7b", (*FULL, "data.source=hub:me/mine"), {"Qwen2.5-7B-Instruct"}),
        ("paper-7b", (*FULL, "student_sft.n_questions=500"), {"Qwen2.5-7B-Instruct"}),
        ("paper-7b", (*FULL, "evaluation.max_questions=10"), set()),
        ("paper-7b", (*FULL, 'evaluation.budget={"continuations":2}'), set()),
        (
            "paper-32b",
            ("student_sft_subset=null", "trace_sources.sky-t1.data.source=hub:me/mine"),
            {"Qwen2.5-32B-Instruct", "Bespoke-32B", "RLT-32B"},
        ),
        (
            "paper-7b",
            (*FULL, "imports.models.theirs=hub:simplescaling/s1-32B"),
            {"Qwen2.5-7B-Instruct", "Bespoke-7B", "RLT-7B"},
        ),
    ],
)
def test_table_1_quotes_a_number_beside_the_row_that_it_belongs_to(
    profile: str, changes: tuple[str, ...], quoted: set[str]
) -> None:
    rows = shown("table-1", profile, *changes).rows
    assert {row.paper for row in rows if row.paper} - {"s1-32B + budget forcing"} == SELF | quoted


def test_table_2_quotes_the_paper_for_its_7b_students_alone() -> None:
    counts = {
        profile: sum(bool(row.paper) for row in shown("table-2", profile).rows)
        for profile in ("smoke", "paper-7b", "paper-32b")
    }
    assert counts == {"smoke": 0, "paper-7b": 5, "paper-32b": 0}


def test_students_of_table_1_learn_from_what_their_rows_say() -> None:
    nodes = graph("table-1", "smoke", "larger_student.traces=3")
    large, alone = nodes["student-sft[rlt-large]@0"], nodes["student-sft[solution-only]@0"]
    assert isinstance(large.config, StudentSFTStageConfig) and large.config.fits
    assert large.inputs["model"].variant == "larger-student"
    assert nodes["trace-generation[rlt-choice]@0"].config.sampling.n == 3  # type: ignore[attr-defined]
    assert isinstance(alone.config, StudentSFTStageConfig) and alone.config.traces == "none"
    assert alone.inputs.keys() == {"model", "questions"}
    for name in ("s1", "sky-t1"):  # other data sets may not hold the test questions
        assert nodes[f"dataset-prep[{name}]"].inputs["tested"].key == nodes["dataset-prep"].key
    assert not nodes["dataset-prep"].inputs


def test_imported_models_are_rows_and_replace_quoted_ones() -> None:
    change = "imports.models.theirs=hub:Qwen/QwQ-32B"
    rows = {row.model: row for row in shown("table-1", "paper-7b", change).rows}
    assert rows["theirs"].paper == "QwQ-32B" and not rows["theirs"].trained
    assert "qwq-32b" not in rows and rows["deepseek-r1"].missing
    theirs = next(r for r in shown("table-1", "smoke", change).rows if r.model == "theirs")
    assert theirs.paper is None, "smoke does not ask the paper's questions"


def test_raw_traces_of_table_2_are_the_solvers_and_refined_if_an_llm_is_named() -> None:
    (missing,) = (row for row in shown("table-2").rows if row.missing)
    assert "trace_refinement.model" in (missing.missing or "")
    changes = ("trace_refinement.name=gpt", "trace_refinement.model=some-model")
    assert all(row.missing is None for row in shown("table-2", "smoke", *changes).rows)
    nodes = graph("table-2", "smoke", *changes)
    raw = nodes["trace-generation[raw]@0"]
    assert nodes["trace-refinement[raw-gpt]@0"].inputs["traces"].key == raw.key
    assert raw.config.context == "student", "it sees no solution"  # type: ignore[attr-defined]
    assert raw.inputs["teacher"].key == nodes["student-grpo[none]@0"].key


def test_the_teacher_never_saw_countdown() -> None:
    nodes = graph("countdown")
    above = {node.name for node in upstream([nodes["teacher-grpo@0"]])}
    assert not any("countdown" in name for name in above)
    evaluated = nodes["evaluation[countdown-zero-shot]@0"]
    assert evaluated.inputs["countdown"].name == "dataset-prep[countdown]"
    assert evaluated.config.evaluation.tasks == ("countdown",)  # type: ignore[attr-defined]


def test_every_ranked_set_has_one_student_per_rank() -> None:
    ablation = load_config("smoke").rank_ablation
    assert ablation
    nodes = graph("rank-ablation")
    for ranked_by in ablation.sets:
        inputs = nodes[f"rank-statistics[{ranked_by}]"].inputs.values()
        assert sum(one.stage.name == "evaluation" for one in inputs) == ablation.ranks
    trained = [node for node in nodes.values() if node.stage.name == "student-sft"]
    assert len(trained) == 1 + len(ablation.sets) * ablation.ranks


def test_every_reward_is_judged_by_the_same_one() -> None:
    nodes = graph("reward-ablation")
    rewards = {node.config.reward for node in nodes.values() if node.stage.name == "trace-scoring"}  # type: ignore[attr-defined]
    assert rewards == {load_config("smoke", []).reward}
    teachers = {n.config.reward for n in nodes.values() if n.stage.name == "teacher-grpo"}  # type: ignore[attr-defined]
    assert {(0.0, 0.0), (3.0, 0.0), (0.0, 0.01), (1.0, 0.01), (3.0, 0.01)} == {
        (reward.kl_weight, reward.alpha) for reward in teachers
    }


# ---------------------------------------------------------------- the KL estimator of scores
def own_traces(scoring: Node) -> bool:
    """Whether the teacher that scores wrote the traces, seeing the solution."""
    traces = scoring.inputs["traces"]
    names = [each.inputs["teacher"].name for each in (traces, scoring) if "teacher" in each.inputs]
    return len(names) == 2 and len(set(names)) == 1 and "context='teacher'" in str(traces.config)


@pytest.mark.parametrize("profile", ["smoke", "tiny"])
def test_scores_of_traces_that_the_teacher_did_not_write_use_the_full_kl(profile: str) -> None:
    nodes = [one for name in (*EXPERIMENTS, "all") for one in graph(name, profile).values()]
    scored = [(node, node.config) for node in nodes if node.stage.name == "trace-scoring"]
    assert {own_traces(node) for node, _ in scored} == {True, False}
    for node, config in scored:
        assert isinstance(config, TraceScoringConfig)
        if own_traces(node):
            kl = "full" if node.variant == "rlt-compared" else "k1"
            assert (config.reward.kl, config.note) == (kl, "")
            # Keys of the teacher's own traces are what they were before there was a choice.
            assert set(config.model_dump()) == {"reward", "scoring", "format", "seed"}
            assert set(config.model_dump()["scoring"]) == {"dtype", "max_tokens"}
        else:
            assert config.reward.kl == "full" and "full" in config.note


def test_k1_can_be_chosen_for_off_policy_traces_and_warns() -> None:
    found = graph("compare-traces", "smoke", "trace_scoring.off_policy_kl=k1")
    config = found["trace-scoring[dataset]@0"].config
    assert isinstance(config, TraceScoringConfig)
    assert config.reward.kl == "k1" and config.note.startswith("warning: r_KL by k1")
    # Both sets have the same estimator, so that the teacher's own node is the pipeline's.
    own = graph("full-pipeline", "smoke")["trace-scoring[rlt]@0"]
    assert found["trace-scoring[rlt]@0"].key == own.key
    assert "trace-scoring[rlt-compared]@0" not in found


@pytest.mark.parametrize("made", ["another teacher", "student", "import", "refinement", "dataset"])
def test_each_kind_of_foreign_traces_is_seen(made: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_text('{"question": "1+1", "solution": "2", "trace": "two"}\n')
    config = load_config("smoke", ["trace_refinement.name=refined", "trace_refinement.model=llm"])
    nodes = Nodes(config)
    teacher = nodes.teacher_grpo(0)
    own = nodes.traces(teacher, "rlt", 0)
    traces = {
        "another teacher": lambda: nodes.traces(nodes.teacher_sft(0), "sft", 0),
        "student": lambda: nodes.traces(teacher, "thoughts", 0, context="student"),
        "import": lambda: nodes.imported_traces("theirs", str(file)),
        "refinement": lambda: nodes.refined_traces(own, "refined", 0),
        "dataset": lambda: nodes.dataset_traces,
    }[made]()
    foreign, ours = (nodes.scores(each, teacher, "x", 0).config for each in (traces, own))
    assert isinstance(foreign, TraceScoringConfig) and isinstance(ours, TraceScoringConfig)
    assert (foreign.reward.kl, ours.reward.kl) == ("full", "k1")
    assert foreign.off_policy and not ours.off_policy
