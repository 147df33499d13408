"""A bundle is checked by itself: any change in it is found."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_study import STUDY, commit_all

from rlt_core.errors import UserError
from rlt_core.store import Store
from rlt_core.store.files import sha256_of
from rlt_core.study.bundle import require_place, verify, write_bundle
from rlt_core.study.freeze import freeze, frozen_path, require_frozen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a study that has run, beside its file."""
    folder = tmp_path_factory.mktemp("study")
    file = folder / "made-up.toml"
    file.write_text(STUDY)
    store = Store(str(folder / "store"))
    freeze(file, store)
    resolved, _ = require_frozen(file)
    commit_all(resolved, store)
    write_bundle(resolved, store, folder / "made-up.bundle")
    return folder / "made-up.bundle"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def rehash(bundle: Path) -> None:
    """As one would who knows of the index."""
    index = json.loads((bundle / "bundle.json").read_text())
    files = {name: sha256_of(bundle / name) for name in index["files"] if (bundle / name).exists()}
    (bundle / "bundle.json").write_text(json.dumps({"files": files}))


def table_of(bundle: Path, name: str) -> Path:
    nodes = json.loads((bundle / "nodes.json").read_text())
    key = next(node["key"] for node in nodes if node["name"] == name)
    return next((bundle / "tables" / key).glob("*.parquet"))


def test_a_whole_bundle_agrees(made):
    found = verify(made)
    assert found.problems == ()
    beats, ranks = found.verdicts
    assert beats.claim == "beats"
    assert beats.estimate == pytest.approx(0.2, abs=0.1)
    assert ranks.estimate > 0.9
    assert [point.mean_reward for point in ranks.points] == [-1.0, -2.0, -3.0]
    said = (made / "verdicts.md").read_text()
    assert "RLT traces are better." in said and "a lower learning rate" in said
    assert "The rules are those of the freeze." in said


def test_it_holds_no_text_and_only_what_claims_name(made):
    columns = {name for file in made.rglob("*.parquet") for name in pq.read_schema(file).names}
    assert not columns & {"question", "completion", "text"}
    nodes = json.loads((made / "nodes.json").read_text())
    variants = {node["variant"] for node in nodes if node["stage"] == "evaluation"}
    assert variants == {"rlt", "dataset", "rank-1", "rank-2", "rank-3"}
    compression = {pq.read_metadata(file).row_group(0).column(0).compression
                   for file in made.rglob("*.parquet")}  # fmt: skip
    assert compression == {"ZSTD"}


# ---------------------------------------------------------------- spoiled
@pytest.mark.parametrize(
    "name", ["study.toml", "frozen.json", "nodes.json", "verdicts.json", "verdicts.md"]
)
def test_a_changed_file_is_named(bundle, name):
    with (bundle / name).open("a") as file:
        file.write(" ")
    assert any(problem.startswith(f"{name}: altered") for problem in verify(bundle).problems)


def flip(file: Path, count: int) -> None:
    """Make the first wrong answers right."""
    table = pq.read_table(file)
    wrong = [n for n, one in enumerate(table["outcome"].to_pylist()) if one == "wrong"][:count]
    outcome = ["correct" if n in wrong else one for n, one in
               enumerate(table["outcome"].to_pylist())]  # fmt: skip
    place = table.schema.get_field_index("outcome")
    pq.write_table(table.set_column(place, "outcome", pa.array(outcome)), file)


def test_a_changed_table_is_found_even_with_new_hashes(bundle):
    file = table_of(bundle, "evaluation[dataset]@101")
    flip(file, 1)
    (problem,) = verify(bundle).problems
    assert problem.startswith(f"{file.relative_to(bundle)}: altered")
    rehash(bundle)
    problems = verify(bundle).problems
    assert any("'beats': estimate: verdicts.json says" in problem for problem in problems)
    assert not any("'ranks'" in problem for problem in problems)


@contextmanager
def edited(bundle: Path, name: str) -> Iterator[Any]:
    content = json.loads((bundle / name).read_text())
    yield content
    (bundle / name).write_text(json.dumps(content))
    rehash(bundle)


def refute(bundle: Path) -> None:
    with edited(bundle, "verdicts.json") as judgement:
        judgement["verdicts"][1]["verdict"] = "refuted"


def drop(bundle: Path) -> None:
    with edited(bundle, "verdicts.json") as judgement:
        del judgement["verdicts"][0]


def another_model(bundle: Path) -> None:
    with edited(bundle, "nodes.json") as nodes:
        for node in nodes:
            other = {"rlt": "rank-3", "rank-3": "rlt"}.get(node["variant"])
            if node["stage"] == "evaluation" and other:
                node |= {"variant": other, "name": f"evaluation[{other}]@{node['seed']}"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (refute, ["claim 'ranks': verdict: ", "verdicts.md does not say"]),
        (drop, ["verdicts.json: claim 'beats' has no verdict"]),
        (another_model, ["not in the frozen graph"]),
        (("study.toml", b'theirs = "dataset"', b'theirs = "rank-3"'), ["is not what was frozen"]),
        (("verdicts.md", b"traces are", b"traces must be"), ["verdicts.md does not say what"]),
        (("verdicts.md", b"traces are", b"traces \xff are"), ["verdicts.md does not say what"]),
    ],
)
def test_what_was_changed_is_found_even_with_new_hashes(bundle, spoil, said):
    if callable(spoil):
        spoil(bundle)
    else:
        name, old, new = spoil
        (bundle / name).write_bytes((bundle / name).read_bytes().replace(old, new, 1))
        rehash(bundle)
    problems = verify(bundle).problems
    assert problems
    for each in said:
        assert any(each in problem for problem in problems)


@pytest.mark.parametrize("left_out", ["evaluation[rlt]@101", "evaluation[rank-3]"])
def test_a_seed_or_a_rank_left_out_is_found(bundle, left_out):
    """Of a study whose graph is fixed none may be dropped."""
    with edited(bundle, "nodes.json") as nodes:
        before = len(nodes)
        nodes[:] = [node for node in nodes if not node["name"].startswith(left_out)]
    problems = verify(bundle).problems
    assert len(problems) == before - len(nodes) > 0
    assert all(left_out in one and "is left out" in one for one in problems)


def test_tables_that_changed_places_are_found(bundle):
    one, other = (table_of(bundle, f"evaluation[{name}]@101") for name in ("rlt", "dataset"))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    rehash(bundle)
    with pytest.raises(UserError, match="answers of the model"):
        verify(bundle)


def test_files_too_many_or_too_few_are_named(bundle):
    (bundle / "notes.txt").write_text("by hand")
    table = table_of(bundle, "evaluation[rlt]@102")
    table.unlink()
    problems = verify(bundle).problems
    assert "notes.txt: not part of the bundle" in problems
    assert f"{table.relative_to(bundle)}: missing" in problems
    (bundle / "notes.txt").unlink()
    rehash(bundle)
    with pytest.raises(UserError, match=r"table of evaluation\[rlt\]@102 cannot be read"):
        verify(bundle)


def lose_ids(bundle: Path) -> None:
    file = table_of(bundle, "evaluation[rlt]@102")
    table = pq.read_table(file)
    ids = table["question_id"].to_pylist()
    place = table.schema.get_field_index("question_id")
    pq.write_table(table.set_column(place, "question_id", pa.array([None, *ids[1:]])), file)


def break_table(bundle: Path) -> None:
    table_of(bundle, "evaluation[rlt]@102").write_bytes(b"PAR1 but no more")


@pytest.mark.parametrize("spoil", [lose_ids, break_table])
def test_a_table_that_cannot_be_used_is_one_line(bundle, spoil):
    spoil(bundle)
    rehash(bundle)
    with pytest.raises(UserError) as error:
        verify(bundle)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("bundle.json", b"{"), ("bundle.json", None), ("verdicts.json", None), ("nodes.json", None),
     ("nodes.json", b'[{"name": 3}]')],
)  # fmt: skip
def test_a_broken_bundle_is_one_line(bundle, name, content):
    if content is None:
        (bundle / name).unlink()
    else:
        (bundle / name).write_bytes(content)
    if name == "nodes.json":
        rehash(bundle)
    with pytest.raises(UserError) as error:
        verify(bundle)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- writing
def test_the_same_tables_give_the_same_bundle(made, tmp_path):
    file = made.with_suffix(".toml")
    resolved, _ = require_frozen(file)
    write_bundle(resolved, Store(str(made.parent / "store")), tmp_path / "again")
    one, other = ((folder / "bundle.json").read_text() for folder in (made, tmp_path / "again"))
    assert one == other


def test_a_study_that_has_not_run_gives_none(made, tmp_path):
    resolved, _ = require_frozen(made.with_suffix(".toml"))
    with pytest.raises(UserError, match=r"is not in .*; run the study"):
        write_bundle(resolved, Store(str(tmp_path / "empty")), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_no_other_folder_is_replaced(made, bundle, tmp_path):
    frozen = frozen_path(made.with_suffix(".toml"))
    require_place(tmp_path / "new", frozen)
    require_place(bundle, frozen)
    (bundle / "frozen.json").write_text("{}")
    with pytest.raises(UserError, match="of another freeze"):
        require_place(bundle, frozen)
    (tmp_path / "mine").mkdir()
    require_place(tmp_path / "mine", frozen)
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for place in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(UserError, match="this is no bundle"):
            require_place(place, frozen)


def test_rules_changed_after_the_freeze_are_told(made, tmp_path):
    file = tmp_path / "made-up.toml"
    shutil.copyfile(made.with_suffix(".toml"), file)
    before = json.loads(frozen_path(made.with_suffix(".toml")).read_text())
    frozen_path(file).write_text(json.dumps(before | {"rules_sha256": "0" * 64}))
    resolved, _ = require_frozen(file)
    write_bundle(resolved, Store(str(made.parent / "store")), tmp_path / "out")
    assert "changed after the freeze" in (tmp_path / "out" / "verdicts.md").read_text()
    assert not verify(tmp_path / "out").problems


def test_a_bundle_of_other_rules_says_where_they_are(bundle):
    with edited(bundle, "frozen.json") as frozen:
        frozen["git_commit"] = "c0ffee"
    with edited(bundle, "verdicts.json") as judgement:
        judgement["rules_sha256"] = "a" * 64
    (problem,) = verify(bundle).problems
    assert problem.startswith("judged by the rules aaaaaaaaaaaa of version")
    assert "check out commit c0ffee" in problem
