"""`rlt export hub`: layout, card, refusals, whole or not at all; on a committed store of ours."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from infra.sample_manifest import sample_manifest
from rlt_core.errors import UserError
from rlt_core.export import hub
from rlt_core.export.card import _licence_fields, _model_source
from rlt_core.models import tiny_tokenizer
from rlt_core.prompts.format import load_format, shipped
from rlt_core.prompts.renderer import Renderer
from rlt_core.rows import read_rows, write_rows
from rlt_core.store import Manifest, Ref, Store

TRACES, SCORES = "smoke/trace-generation[sft-held-out]@0", "smoke/trace-scoring[sft-held-out]@0"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    root = tmp_path / "store"
    shutil.copytree(Path(__file__).parent / "store" / "release_store", root)
    return Store(str(root))


def export(store: Store, folder: Path, name: str = TRACES, **changes: Any) -> Any:
    given = {"what": "traces", "scores": None, "repo": None, "command": "rlt export …"} | changes
    return hub.export(store, name, folder=folder, **given)


def commit(store: Store, kind: Any, key: str, table: str, rows: list[Any], **fields: Any) -> Ref:
    attempt = store.begin(Ref(kind=kind, key=key))
    write_rows(attempt.out / f"{table}.parquet", table, rows)
    files = store.describe(attempt)
    store.commit(sample_manifest(attempt.ref, attempt.id, files, **fields))
    return attempt.ref


def test_traces_are_a_data_set_with_questions_rewards_and_a_card(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()  # it may be there, if it is empty
    done = export(store, tmp_path / "out")
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["validation"]  # the split of its questions
    rows = loaded["validation"].to_list()
    traces = {row["trace_id"]: row for row in read_rows(store.intact(store.find(TRACES)), "traces")}
    scores = {row["trace_id"]: row for row in read_rows(store.intact(store.find(SCORES)), "scores")}
    assert {row["trace_id"] for row in rows} == set(traces)
    assert done.splits == {"validation": 16} and len(traces) == 16
    for row in rows:
        trace, score = traces[row["trace_id"]], scores[row["trace_id"]]
        assert row["explanation"] == trace["text"] and row["teacher"] == trace["teacher"]
        assert (row["reward"], row["rank"]) == (score["reward"], score["rank"])
        user, assistant = row["messages"]  # the format `tiny` has no system prompt
        assert user == {"role": "user", "content": row["question"]}
        spelt = f"<think>{row['explanation']}</think><solution>{row['solution']}</solution>"
        assert assistant == {"role": "assistant", "content": spelt}
    card = DatasetCard.load(tmp_path / "out" / "README.md", ignore_metadata_errors=False)
    assert card.data.license is None
    text = card.text
    for said in (store.find(TRACES).ref.key, store.find(SCORES).ref.key, "kl\\_weight 3.0",
                 "| data set | arithmetic | made by the pipeline |", "rlt export"):  # fmt: skip
        assert said in text, said


def test_scores_are_the_newest_of_the_traces_or_those_named(store: Store, tmp_path: Path) -> None:
    traces = store.find(TRACES)
    rows = [
        row | {"reward": 1.0} for row in read_rows(store.intact(store.find(SCORES)), "scores")
    ]  # fmt: skip
    new = {"stage": "trace-scoring", "label": "trace-scoring[again]"}
    mine = {"finished_at": datetime.now(UTC), "inputs": {"traces": traces.ref}}
    newest = commit(store, "scores", "1" * 16, "scores", rows, **new, **mine)
    strange = {"traces": Ref(kind="traces", key="f" * 16)}
    commit(store, "scores", "2" * 16, "scores", rows, **new, inputs=strange)
    others = [row | {"trace_id": f"x{row['trace_id']}"} for row in rows]
    commit(store, "scores", "3" * 16, "scores", others, stage="score-import", label="score-import")

    for folder, scores in (("a", None), ("b", SCORES)):
        export(store, tmp_path / folder, scores=scores)
        (file,) = (tmp_path / folder / "data").iterdir()
        rewards = set(pq.read_table(file)["reward"].to_pylist())
        assert (rewards == {1.0}) is (scores is None)
    for scores, message in (
        ("2" * 16, "scores of other traces"),
        ("3" * 16, "are of none of the traces"),
        (TRACES, "of kind traces, not scores"),
    ):
        with pytest.raises(UserError, match=message):
            export(store, tmp_path / "c", scores=scores)
    store.remove(newest)
    store.remove(store.find(SCORES).ref)
    assert export(store, tmp_path / "d").splits == {"validation": 16}
    (file,) = (tmp_path / "d" / "data").iterdir()
    assert "reward" not in pq.read_schema(file).names
    assert "No reward was used" in (tmp_path / "d" / "README.md").read_text()


@pytest.mark.parametrize("split", ["../../outside", "OUTSIDE", "..", "a\x00", "train\n", ""])
def test_a_split_names_no_file_elsewhere(split: str, store: Store, tmp_path: Path) -> None:
    split = split.replace("OUTSIDE", str(tmp_path / "outside"))
    asked, traces = store.find("smoke/dataset-prep"), store.find(TRACES)
    rows = [row | {"split": split} for row in read_rows(store.intact(asked), "questions")]
    questions = commit(store, "dataset", "4" * 16, "questions", rows)
    fields = {"config": traces.config, "inputs": traces.inputs | {"questions": questions}}
    rows = read_rows(store.intact(traces), "traces")
    own = commit(store, "traces", "5" * 16, "traces", rows, **fields)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="a split is a word"):
        export(store, tmp_path / "out", own.key)
    assert set(tmp_path.iterdir()) == before


def test_a_circle_of_inputs_and_a_config_of_another_shape_are_refused(
    store: Store, tmp_path: Path
) -> None:
    traces = store.find(TRACES)
    rows = read_rows(store.intact(traces), "traces")
    for number, config, inputs, said in (
        (6, traces.config, {"questions": Ref(kind="traces", key="6" * 16)}, "are not in"),
        (7, {"format": [1]}, traces.inputs, "its .*valid dictionary"),
    ):
        own = commit(
            store, "traces", str(number) * 16, "traces", rows, config=config, inputs=inputs
        )
        with pytest.raises(UserError, match=said):
            export(store, tmp_path / "out", own.key)


def test_a_mistake_or_damage_leaves_nothing(store: Store, tmp_path: Path) -> None:
    full, file, place = tmp_path / "full", tmp_path / "file", tmp_path / "place"
    full.mkdir()
    (full / "x").touch()
    file.touch()
    place.mkdir()
    scored = store.find(SCORES)
    for changes, message in (
        ({"folder": full}, "name a new or empty folder"),
        ({"folder": file}, "name a new or empty folder"),
        ({"name": "smoke/nothing"}, "no artifact 'smoke/nothing'"),
        ({"name": SCORES}, f"not traces; its traces: {scored.inputs['traces'].key}"),
        ({"what": "model"}, "of kind traces, not model"),
        ({"what": "model", "name": "smoke/dataset-prep"}, "of kind dataset, not model"),
        ({"what": "model", "scores": SCORES}, "--scores is for traces"),
    ):
        with pytest.raises(UserError, match=message):
            export(store, **{"folder": place / "new"} | changes)
    manifest: Manifest = store.find(TRACES)
    damaged = Path(store.data_path(manifest)) / manifest.tables["traces"][1]
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(UserError, match="is damaged"):
        export(store, place / "new")
    store.remove(store.find("smoke/dataset-prep").ref)
    with pytest.raises(UserError, match=r"its questions .* are not in"):
        export(store, place / "new")
    assert list(place.iterdir()) == [] and [one.name for one in full.iterdir()] == ["x"]


@pytest.mark.parametrize("format", shipped())
@pytest.mark.parametrize("text", ["", "One.", "One.\n", "One.\n\n", " a\n\n\n"])
def test_messages_are_the_text_of_training_rows(format: str, text: str) -> None:
    chosen = load_format(format)
    tokenizer = tiny_tokenizer(chosen)
    renderer = Renderer(chosen, tokenizer)
    ids = renderer.student_sft_row("1+1?", renderer.encode_block(text), "2").input_ids
    chat = chosen.messages("1+1?", "2", text)
    shown = tokenizer.apply_chat_template(chat, tokenize=False)
    assert tokenizer.decode(ids) == shown.removesuffix("\n")


def test_the_datas_own_system_prompt_is_a_turn() -> None:
    own = load_format("rlt").model_copy(update={"student_system": None})
    assert own.messages("q", "s", "t", "Think.")[0] == {"role": "system", "content": "Think."}
    assert [turn["role"] for turn in own.messages("q", "s", "t")] == ["user", "assistant"]


def test_an_llm_that_wrote_traces_is_a_source(store: Store, tmp_path: Path) -> None:
    traces = store.find(TRACES)
    rows = read_rows(store.intact(traces), "traces")
    for number, section in enumerate(("teacher", "refinement")):
        config = {"format": traces.config["format"], section: {"model": f"gpt-{number}"}}
        inputs = {"questions": traces.inputs["questions"]}
        ref = commit(
            store, "traces", f"{number}" * 16, "traces", rows, config=config, inputs=inputs
        )
        export(store, tmp_path / section, ref.key)
        card = (tmp_path / section / "README.md").read_text()
        assert f"| model | endpoint:gpt-{number} | unknown |" in card and "\nlicense" not in card


def test_licences_are_the_hubs_identifiers_or_other() -> None:
    assert _licence_fields(["made by the pipeline"]) == _licence_fields(["mit", "unknown"]) == {}
    assert _licence_fields(["Apache-2.0", "apache-2.0"]) == {"license": "apache-2.0"}
    assert _licence_fields(["mit, CC-BY-SA-4.0"]) == {"license": ["cc-by-sa-4.0", "mit"]}
    named = {"license": "other", "license_name": "mit-my-terms"}
    assert _licence_fields(["my terms", "MIT"]) == named


def test_a_models_licence_is_its_packages_or_its_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _model_source("package:pytest:0123")
    assert (found.name, found.licence) == ("package:pytest", "MIT")
    commit = "a" * 40
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert _model_source(f"hub:org/name@{commit}").licence == "unknown"
    for text, licence in (("license: mit", "mit"), ("license: [", "unknown"), ("a: 1", "unknown")):
        (snapshot / "README.md").write_text(f"---\n{text}\n---\n")
        found = _model_source(f"hub:org/name@{commit}")
        assert (found.name, found.licence) == (f"hub:org/name@{commit}", licence)
    assert (
        json.dumps(_model_source("")) == '["model", "trained from scratch", "made by the pipeline"]'
    )
