"""Study files, and what is fixed before seeds run."""

from pathlib import Path

import pytest
from made_up_study import STUDY, commit

from rlt_core.errors import UserError
from rlt_core.graph import Node
from rlt_core.overrides import load_config
from rlt_core.store import Store
from rlt_core.study.claims import load_study
from rlt_core.study.freeze import (
    Freeze,
    freeze,
    frozen_path,
    read_json,
    require_frozen,
    resolve,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A study file, not frozen yet."""
    path = tmp_path / "made-up.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(str(tmp_path / "store"))


def node(path: Path, name: str) -> Node:
    return next(one for one in resolve(path).nodes if one.name == name)


# ---------------------------------------------------------------- mistakes in the file
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('theirs = "dataset"', "", "claim 'beats': theirs: Field required"),
        ("ours =", "our =", "claim 'beats': our: there is no such field; did you mean 'ours'?"),
        ('"difference"', '"diff"', "claim 'beats': kind: it is one of difference, ratio"),
        ('theirs = "dataset"', "theirs = [3]", r"claim 'beats': theirs\.0: "),
        ('theirs = "dataset"', 'theirs = "rlt"', "claim 'beats': ours and theirs are all diff"),
        ('set = "reward"', 'set = "rewards"', "claim 'ranks': set: "),
        ('name = "beats"', "", "claim number 1: name: Field required"),
        ('name = "beats"', 'name = "ranks"', "two are called 'ranks'"),
        ("full-pipeline", "full-pipelin", "claim 'beats': experiment: .*'full-pipeline'"),
        ("[101, 102]", "[101]", "seeds: .*at least 2 items"),
        ("[101, 102]", "[101, 101]", "all different"),
        ("[101, 102]", "[101, 1]", r"\[1\] were used in regimes"),
        ("rank_ablation.ranks=3", "seeds=[3]", "belongs in the study's own fields"),
        ("rank_ablation.ranks=3", "ranks", "write it as field.name=value"),
        ("seeds = [101, 102]", "seeds = [101 102]", "is not TOML: .*line 4"),
        ("what =", "wat =", r"regimes\.0\.wat: there is no such field; did you mean 'what'"),
        ('kind = "corr', 'primary = 3\nkind = "corr', "claim 'ranks': primary: "),
    ],
)
def test_a_mistake_is_one_line_that_names_claim_and_field(file, old, new, said):
    assert old in STUDY
    file.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as error:
        load_study(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"dataset"',
            '"raw"',
            "'beats': theirs: .*'raw'.*: base, rlt, dataset, .*rank-N",
        ),
        ('task = "test"', 'task = "aime24"', "'beats': task: 'rlt' is not tested on 'aime24'"),
        ("ranks=3", "ranks=2", "'ranks': set: .*three ranks or more"),
        ('set = "reward"', 'set = "random"', "'ranks': set: .*'random'"),
        ("rank_ablation.ranks", "rank_ablation.rank", "did you mean|there are|unknown field"),
        ('profile = "smoke"', 'profile = "smok"', "did you mean 'smoke'"),
    ],
)
def test_what_the_graph_lacks_is_refused_before_anything_runs(file, store, old, new, said):
    file.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        freeze(file, store)
    assert not frozen_path(file).exists()


# ---------------------------------------------------------------- freezing
def test_a_freeze_holds_the_file_the_config_and_the_graph(file, store):
    frozen, new = freeze(file, store)
    assert new
    assert frozen_path(file).name == "made-up.frozen.json"
    assert read_json(frozen_path(file), Freeze) == frozen
    names = set(frozen.nodes.values())
    assert {"evaluation[rlt]@101", "evaluation[base]", "evaluation[rank-3]@102"} <= names
    assert not any(name.startswith("report") for name in names)
    assert freeze(file, store) == (frozen, False)
    assert require_frozen(file)[1] == frozen


def test_seeds_that_ran_are_refused(file, store):
    commit(store, node(file, "base-model"), {})
    commit(store, node(file, "teacher-sft@102"), {})
    with pytest.raises(UserError, match=r"seeds 102 were run already .*teacher-sft@102") as error:
        freeze(file, store)
    assert "101" not in str(error.value)
    assert not frozen_path(file).exists()


def test_seeds_that_ran_with_other_settings_are_refused(file, store):
    """What came out of them could have chosen the settings."""
    other = file.with_name("other.toml")
    other.write_text(STUDY.replace("ranks=3", 'ranks=3", "student_sft.steps=5'))
    commit(store, node(other, "student-sft[rlt]@101"), {})
    with pytest.raises(UserError, match=r"seeds 101 were run already"):
        freeze(file, store)


def test_other_seeds_and_what_seeds_share_may_have_run(file, store):
    development = file.with_name("development.toml")
    development.write_text(STUDY.replace("[101, 102]", "[8, 9]"))
    for name in ("base-model", "dataset-prep", "evaluation[base]", "teacher-sft@8"):
        commit(store, node(development, name), {})
    assert freeze(file, store)[1]


def test_after_the_freeze_the_seeds_run_and_it_stays(file, store):
    frozen, _ = freeze(file, store)
    commit(store, node(file, "teacher-sft@102"), {})
    assert freeze(file, store) == (frozen, False)
    frozen_path(file).unlink()
    with pytest.raises(UserError, match="were run already"):
        freeze(file, store)


# ---------------------------------------------------------------- changes
def test_a_study_that_is_not_frozen_does_not_run(file):
    with pytest.raises(UserError, match=r"not frozen; `rlt study freeze .*made-up.toml`"):
        require_frozen(file)


def test_a_changed_file_is_named(file, store):
    freeze(file, store)
    file.write_text(STUDY.replace("are better", "are much better"))
    with pytest.raises(UserError, match="the study's file was changed") as error:
        require_frozen(file)
    assert "config" not in str(error.value)
    with pytest.raises(UserError, match=r"is the freeze of something else .the study's file"):
        freeze(file, store)


def test_a_changed_config_is_named(file, store, monkeypatch):
    freeze(file, store)
    changed = load_config("smoke", ["trace_scoring.max_tokens=99"])
    monkeypatch.setitem(load_config.__globals__["PROFILES"], "smoke", lambda: changed)
    with pytest.raises(UserError, match=r"config differs .*; the code or the data .*keys"):
        require_frozen(file)


def test_resources_may_change(file, store, monkeypatch):
    freeze(file, store)
    changed = load_config("smoke", ["resources.cores=3"])
    monkeypatch.setitem(load_config.__globals__["PROFILES"], "smoke", lambda: changed)
    require_frozen(file)


def test_changed_code_is_named(file, store):
    """As after a stage's version was raised: every key below it is another."""
    frozen, _ = freeze(file, store)
    nodes = {key[::-1] if "student" in name else key: name for key, name in frozen.nodes.items()}
    before = frozen.model_copy(update={"nodes": nodes})
    frozen_path(file).write_text(before.model_dump_json())
    with pytest.raises(UserError, match=r"code or the data changed: \d+ of \d+ nodes.*student"):
        require_frozen(file)


@pytest.mark.parametrize("content", ["", "{}", '{"study": 3}', "[1]"])
def test_a_damaged_freeze_is_one_line(file, store, content):
    frozen_path(file).write_text(content)
    for act in (lambda: freeze(file, store), lambda: require_frozen(file)):
        with pytest.raises(UserError, match=r"made-up\.frozen\.json: ") as error:
            act()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "pilot"), [("paper", True), ("paper-2", False)])
def test_the_paper_s_studies_can_be_read(name, pilot):
    path = Path(__file__).parents[3] / "studies" / f"{name}.toml"
    study = resolve(path).study
    assert [claim.kind for claim in study.claims].count("equivalence") == 1
    assert sum(claim.primary for claim in study.claims) == 1
    assert study.pilot == pilot


def test_the_second_study_is_on_seeds_that_the_first_and_its_regimes_did_not_use():
    first, second = (
        load_study(Path(__file__).parents[3] / "studies" / name)
        for name in ("paper.toml", "paper-2.toml")
    )
    used = {seed for one in second.regimes for seed in one.seeds}
    assert set(first.seeds) <= used and set(first.regimes) <= set(second.regimes)
    assert not used & set(second.seeds)
    assert [claim.name for claim in first.claims] == [claim.name for claim in second.claims]
