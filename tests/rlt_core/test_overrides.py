"""Profiles and `--set`: unknown names and wrong types are refused with the field and the fix."""

import json
from functools import reduce
from pathlib import Path

import pytest

from flows.cli.options import started_from
from rlt_core.config import HubModel
from rlt_core.config.fields import fields, reference
from rlt_core.errors import UserError
from rlt_core.overrides import load_config, read_config
from rlt_core.profiles import PROFILES


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("techer_grpo.learning_rate=1", "teacher_grpo"),
        ("teacher_grpo.learnin_rate=1", "learning_rate"),
        ("teacher_grpo.learning_rate=x", r"teacher_grpo\.learning_rate.*number"),
        ("data.n_train=-1", r"data\.n_train"),
        ("data.n_train=true", r"data: n_train: write a number \(given: true\)"),
        ("teacher_grpo.beta=false", r"teacher_grpo: beta: write a number"),
        ("resources.stages.evaluation.threads=true", r"threads: write a number"),
        ("seeds=[true]", r"seeds: write a number \(given: \[true\]\)"),
        ("seeds=[]", "seeds"),
        ("seeds=[1,1]", "seeds"),
        ("seeds=[-1]", r"seeds\.0.*greater than or equal to 0"),
        ("data.seed=4294967296", r"data\.seed"),
        ("teacher_grpo.lora.rank=4", "reference_sync"),
        ("student_grpo.lora.dropout=0.1", "without dropout"),
        ("student_grpo=5", r"student_grpo: .*--set student_grpo=null leaves it out"),
        ("lr=1", r"teacher_sft\.learning_rate, teacher_grpo\.learning_rate"),
        ("student_sft.lr=1", r"did you mean student_sft\.learning_rate\?"),
        ("max_tokens=9", r"teacher_sft\.max_tokens, .*trace_scoring\.max_tokens"),
        ("wibble=1", "there are: .*teacher_grpo"),
        ("resources.stages.base-model.thread=1", r"stages\.base-model\.thread'.*threads"),
        ("resources.stages.base-model.threads=x", r"stages\.base-model\.threads: .*'x'"),
        ("resources.stages.base-model.engine=x", r"stages\.base-model\.engine: .*vllm"),
        ("resources.stages.student-stf.threads=2", r"stages\.student-stf.*'student-sft'"),
        ("resources.stages.evaluate:*large*.threads=2", "unknown stage"),
        ("seeds=0,1", r"seeds: write a list, as --set 'seeds=\[…\]' \(given: '0,1'\)"),
        ("evaluation.tasks=test", r"evaluation\.tasks: write a list"),
        ("teacher_grpo=5", r"teacher_grpo: it has fields; .*learning_rate=… \(given: 5"),
        ("base_model=somewhere", "hub:org/name"),
        ("base_model=hub:a/b@main", "revision"),
        ("evaluation.revisions.aime24=main", r"evaluation\.revisions\.aime24"),
        (f"evaluation.revisions.aime24={'0' * 40}", "aime24, not among `tasks`"),
        ("trace_sources.mine.recip=student_sft", "recipe"),
        ("trace_sources.s1.budgets=" + '[{"continuations":1},{"continuations":1}]', "must differ"),
        ("trace_sources.mine.data=5", r"trace_sources\.mine\.data: .*\.data\.source=…"),
        ("trace_sources.mine.data.sourc=a", "did you mean 'source'"),
        ("reward.alpha=NaN", r"reward\.alpha: write finite numbers \(given: nan"),
        ("reward.clip_kl=-Infinity", r"reward\.clip_kl: "),
        ("teacher_grpo.beta=1e999", r"teacher_grpo\.beta: write finite numbers"),
        ("resources.budget_usd=nan", r"resources\.budget_usd: "),
        ("reward_ablation.alphas=[0.1,NaN]", r"reward_ablation\.alphas: write finite"),
        ("resources.vllm_server=localhost:8000", r"vllm_server: write an address, as http://host"),
        ("resources.vllm_server=http://me:pw@host:8000", r"vllm_server: write an address, as http"),
        (
            "resources.stages.student-grpo.vllm_server=http://",
            r"vllm_server: write an",
        ),
        ("resources.stages.evaluation:.threads=2", "name a variant after the colon"),
        ("rank_ablation.sets=[]", r"rank_ablation\.sets: .*at least 1"),
        ("teacher_bench.students={}", r"teacher_bench\.students: .*at least 1"),
        ("student_sft.beta2=1", r"student_sft\.beta2: .*less than 1"),
        ("evaluation.top_p=0", r"evaluation\.top_p: .*greater than 0"),
        ("a.b=1", "there are: base_model"),
        ("base_model.width=90", r"^base_model: width 90 .* multiple of 8, or change heads"),
        ("larger_student.model.heads=7", r"^larger_student\.model: width 160 "),
        ("base_model.kind=hub", r"^base_model\.repo: Field required"),
        ("imports.models.hub.source.steps=-1", r"^imports\.models\.hub\.source"),
        ("data", "field.name=value"),
        ("profile=smoke", "--profile"),
    ],
)
def test_a_bad_assignment_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config("tiny", [assignment])
    assert "\n" not in str(caught.value)


def test_assignments_reach_their_fields() -> None:
    config = load_config(
        "tiny",
        [
            "seeds=[0,1]", "teacher_grpo.learning_rate=2e-6", "base_model=hub:a/b",
            "student_grpo=null", "data.source=my file.jsonl", "data.fields.solution=answer",
            "resources.stages.base-model.threads=1", 'evaluation.tasks=["aime24"]',
            f"evaluation.revisions.aime24={'0' * 40}", "trace_sources.mine.data.source=their.jsonl",
        ],
    )  # fmt: skip
    assert config.seeds == (0, 1)
    assert config.teacher_grpo.learning_rate == 2e-6
    assert config.base_model == HubModel(repo="a/b")
    assert config.student_grpo is None
    assert (config.data.source, config.data.fields.solution) == ("my file.jsonl", "answer")
    assert config.resources.of("base-model").threads == 1
    assert config.evaluation.revisions == {"aime24": "0" * 40}
    assert config.trace_sources["mine"].data.source == "their.jsonl"


@pytest.mark.parametrize(("given", "other"), [("epochs", "steps"), ("steps", "epochs")])
@pytest.mark.parametrize("profile", ["tiny", "paper-7b"])
def test_epochs_replace_steps_and_the_reverse(profile: str, given: str, other: str) -> None:
    changed = load_config(profile, [f"student_sft.{given}=2"]).student_sft
    assert (getattr(changed, given), getattr(changed, other)) == (2, None)
    with pytest.raises(UserError, match="exactly one"):
        load_config(profile, ["student_sft.epochs=3", "student_sft.steps=3"])


def test_an_evaluation_file_is_a_benchmark_that_is_evaluated() -> None:
    short = ["evaluation.files.mine=my.jsonl", "evaluation.files.mine.grader=multiple_choice"]
    long = ["imports.benchmarks.mine=my.jsonl", "imports.benchmarks.mine.grader=multiple_choice"]
    tasks = load_config("smoke").evaluation.tasks
    whole = [*long, f"evaluation.tasks={json.dumps([*tasks, 'mine'])}"]
    assert load_config("smoke", short) == load_config("smoke", whole)


def test_a_config_file_is_the_assignments_in_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """profile = "smoke"
        seeds = [1, 2]
        [data]
        source = "my file.jsonl"
        fields.solution = "answer"
        [teacher_grpo]
        learning_rate = 2e-6
        epochs = 1
        [resources.stages.base-model]
        threads = 1
        [evaluation]
        """
    )
    profile, changes = read_config(file)
    assert profile == "smoke"
    assert load_config(profile, changes) == load_config("smoke", [
        "seeds=[1,2]", "data.source=my file.jsonl", "data.fields.solution=answer",
        "teacher_grpo.learning_rate=2e-6", "teacher_grpo.epochs=1",
        "resources.stages.base-model.threads=1",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.toml", b"a = "), ("mine.toml", b"\xff\xfe"), ("mine.toml", None),
        ("mine.toml", b"profile = 5"), ("mine.toml", b"profile = ['tiny']"),
        ("mine.toml", b"[profile]\nname = 'tiny'"), ("mine.toml", b"profile = 2026-11-30"),
        ("mine.json", b"5"), ("mine.json", b"[]"), ("mine.json", b"null"), ("mine.json", b"{"),
    ],
)  # fmt: skip
def test_a_config_file_that_cannot_be_read_is_named(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"--config .*{name}: ") as caught:
        read_config(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("set_", [None, ["seeds=[1]"]])
def test_a_wrong_field_of_a_config_file_names_the_file(
    set_: list[str] | None, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("data.n_trian = 5\n")
    with pytest.raises(UserError, match=r"--config .*mine\.toml.*: unknown field 'data\.n_trian'"):
        started_from("smoke", file, set_)


def test_a_date_in_a_config_file_is_its_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("data.source = 2026-11-30\n")
    _, changes = read_config(file)
    assert load_config("smoke", changes).data.source == "2026-11-30"


def test_every_field_of_the_config_is_explained_and_documented() -> None:
    found = list(fields())
    assert len(found) > 150
    assert [field.path for field in found if not field.help] == []
    document = Path(__file__).parents[2] / "docs" / "config.md"
    assert document.read_text() == reference(), "python -m rlt_core.config.fields > docs/config.md"


@pytest.mark.parametrize("profile", ["tiny", "single-gpu"])
def test_the_kind_of_a_model_and_its_fields_come_in_any_order(profile: str) -> None:
    kind, *beside = ("base_model.kind=scratch", "base_model.layers=5", "base_model.width=64")
    one, other = (load_config(profile, order) for order in ([kind, *beside], [*beside, kind]))
    assert one == other and other.base_model.layers == 5  # type: ignore[union-attr]
    hub = ["base_model.repo=a/b", "base_model.kind=hub"]
    assert load_config(profile, hub).base_model == HubModel(repo="a/b")
    again = load_config(profile, [*hub, kind, *beside]).base_model  # after those of a file, say
    assert again == one.base_model


def test_an_imported_model_keeps_its_source_and_format_in_any_order() -> None:
    sets = ["imports.models.x=hub:a/b", "imports.models.x.format=r1"]
    for ordered in (sets, sets[::-1]):
        (model,) = load_config("tiny", ordered).imports.models.values()
        assert (model.source, model.format) == (HubModel(repo="a/b"), "r1")
    whole = load_config("tiny", ['imports.models={"x": "hub:a/b", "y": {"kind": "scratch"}}'])
    assert [m.source.kind for m in whole.imports.models.values()] == ["hub", "scratch"]


@pytest.mark.parametrize(
    ("profile", "section", "numbers"),
    [
        ("paper-7b", "teacher_grpo", {
            "steps": 125, "questions_per_step": 16, "group_size": 64, "learning_rate": 1e-6,
            "schedule": "constant", "beta": 0.04, "temperature": 0.7, "max_prompt_tokens": 16384,
            "max_completion_tokens": 16384, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0,
            "max_grad_norm": 1,
        }),
        ("paper-7b", "teacher_grpo.reference_sync", {"every_steps": 32, "alpha": 0.9}),
        ("paper-7b", "teacher_sft", {
            "epochs": 10, "batch_size": 16, "learning_rate": 1e-5, "warmup_ratio": 0.05,
            "beta2": 0.95, "weight_decay": 1e-4, "schedule": "cosine",
        }),
        ("paper-7b", "student_sft", {"epochs": 3, "batch_size": 96, "warmup_ratio": 0.1}),
        ("paper-7b", "reward", {"alpha": 0.01, "kl_weight": 3.0, "temperature": 0.7}),
        ("paper-7b", "student_grpo", {"epochs": 1, "questions_per_step": 16, "group_size": 64}),
        ("paper-7b", "student_grpo.reward", {"unformatted": -1, "wrong": -0.5, "correct": 1}),
        ("paper-7b", "rl_data", {"source": "hub:GAIR/LIMR"}),
        ("paper-32b-1k", "student_sft", {
            "n_questions": 1000, "epochs": 5, "batch_size": 16, "warmup_ratio": 0.05,
            "weight_decay": 1e-4, "beta2": 0.95,
        }),
    ],
)  # fmt: skip
def test_the_paper_profiles_hold_the_papers_numbers(
    profile: str, section: str, numbers: dict[str, object]
) -> None:
    found = reduce(getattr, section.split("."), load_config(profile))
    assert {name: getattr(found, name) for name in numbers} == numbers


def test_nodes_of_a_variant_may_have_resources_of_their_own() -> None:
    config = load_config("tiny", [
        "resources.stages.student-sft:*-large*.machines=2",
        "resources.stages.student-sft.threads=3",
    ])  # fmt: skip
    large = config.resources.of("student-sft", "rlt-large-subset")
    assert (large.machines, large.threads) == (2, 3)
    other = config.resources.of("student-sft", "rlt")
    assert (other.machines, other.threads) == (1, 3)
    assert config.resources.of("teacher-sft", "rlt-large").machines == 1


@pytest.mark.parametrize("profile", PROFILES)
def test_the_config_of_a_run_can_be_run_again(profile: str, tmp_path: Path) -> None:
    config = load_config(profile, ["seeds=[3]", "teacher_grpo.epochs=2", "student_grpo=null"])
    file = tmp_path / "run.json"
    file.write_text(config.model_dump_json())
    assert config.profile == profile
    assert load_config(*read_config(file)) == config  # type: ignore[arg-type]
    file.write_text('{"profile": "tiny", "sceds": [1]}')
    with pytest.raises(UserError, match=r"run\.json: not the config of a run: .*unknown field 'sc"):
        read_config(file)
