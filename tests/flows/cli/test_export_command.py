"""`rlt export hub` of a finished run: other libraries load it, TRL trains on it, a hub gets it."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from flows.cli.app import app
from rlt_core.rows import read_rows
from rlt_core.store import Store
from tests.flows.conftest import Rlt, environment, invoke
from tests.http_servers import Handler, serving
from tests.smoke_run import in_one_process

STUDENT, TRACES = "smoke/student-sft[rlt]@0", "smoke/trace-generation[rlt]@0"


@pytest.fixture(scope="module")
def exported(smoke_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a model and traces in the form of a hub."""
    folder = tmp_path_factory.mktemp("exported")
    for what, name, said in (
        ("model", STUDENT, f"written: {folder / 'model'}"), ("traces", TRACES, " (8 rows)"),
    ):  # fmt: skip
        hub = ("export", "hub", "--what", what, "--to", folder / what, name)
        assert said in invoke(app, *hub, "--store", smoke_store).output
    return folder


def test_a_student_and_its_traces_are_trained_further_with_trl(
    exported: Path, smoke_store: Path, tmp_path: Path
) -> None:
    model, traces = exported / "model", exported / "traces"
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = torch.tensor([tokenizer.encode("12+34+56")])
    own = Store(str(smoke_store)).intact(Store(str(smoke_store)).find(STUDENT)) / "model"
    expected = AutoModelForCausalLM.from_pretrained(own)(ids).logits
    assert torch.equal(loaded(ids).logits, expected)
    assert {file.name for file in model.iterdir()} > {"README.md", "prompt_format.json"}

    rows = load_dataset(str(traces), split="train", cache_dir=str(tmp_path / "cache"))
    before = loaded.get_input_embeddings().weight.detach().clone()
    trainer = SFTTrainer(
        model=loaded,
        args=SFTConfig(
            output_dir=str(tmp_path / "trained"), max_steps=1, use_cpu=True, report_to="none",
            save_strategy="no", bf16=False,
        ),
        train_dataset=rows.select_columns("messages"),
        processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.train().training_loss > 0
    assert not torch.equal(loaded.get_input_embeddings().weight.cpu(), before)


def test_cards_name_lineage_command_and_evaluation(exported: Path, smoke_store: Path) -> None:
    store = Store(str(smoke_store))
    cards = {
        what: card.load(exported / what / "README.md")
        for what, card in (("model", ModelCard), ("traces", DatasetCard))
    }
    (score,) = [
        row
        for row in read_rows(store.intact(store.find("smoke/evaluation[rlt]@0")), "eval_scores")
        if row["task"] == "test"
    ]
    interval = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    for card in cards.values():
        assert "rlt run full-pipeline --profile smoke\n" in card.text
        assert interval.replace("[", "").replace("]", "") in card.text
        for node in ("dataset-prep", "base-model", "teacher-sft@0", "teacher-grpo@0"):
            name = f"smoke/{node}"
            assert f"| `{node}` | `{store.find(name).ref.key}` |" in card.text
        assert "kl\\_weight 3.0" in card.text
    assert cards["model"].data.library_name == "transformers"


class Hub(Handler):
    """The part of the hub's interface that an upload uses."""

    url: str
    seen: list[str]
    files: dict[str, dict[str, bytes]]
    large: dict[str, bytes]
    """Bytes sent to Git LFS, by their SHA-256."""

    def do_POST(self) -> None:
        body = self.body()
        self.seen.append(self.path)
        answer: dict[str, Any] = {"url": f"{self.url}/org/name"}
        if self.path.endswith("/preupload/main"):
            answer = {"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]}  # fmt: skip
        elif self.path.endswith("/info/lfs/objects/batch"):
            answer = {"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]}  # fmt: skip
        elif "/commit/main" in self.path:
            files = self.files["traces" if "/datasets/" in self.path else "model"]
            for line in map(json.loads, body.splitlines()):
                sent = line["value"]
                if line["key"] == "file":
                    files[sent["path"]] = base64.b64decode(sent["content"])
                elif line["key"] == "lfsFile":
                    files[sent["path"]] = self.large[sent["oid"]]
            address = f"{self.url}/org/name/commit/{'a' * 40}"
            answer = {"success": True, "commitOid": "a" * 40, "commitUrl": address}
        refused = "org/refused" in self.path or b'"refused"' in body
        content = json.dumps(answer).encode()
        self.reply(403 if refused else 200, content, content_type="application/json")

    def do_PUT(self) -> None:
        self.large[self.path.rpartition("/")[2]] = self.body()
        self.reply(200)

    def do_GET(self) -> None:
        self.reply(404)


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    Hub.seen, Hub.files, Hub.large = [], {"traces": {}, "model": {}}, {}
    with serving(Hub) as Hub.url:
        yield Hub


def test_nothing_is_pushed_unless_asked_and_then_everything(
    hub: type[Hub], rlt_inside: Rlt, smoke_store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"

    def push(to: Path, what: str, name: str, repo: str = "org/name") -> list[str]:
        words = ["export", "hub", "--what", what, "--to", str(to), "--push", repo, name]
        return [*words, "--store", str(smoke_store)]

    offline = rlt_inside(*push(folder, "traces", TRACES))
    assert offline.returncode == 2 and "HF_HUB_OFFLINE=1" in offline.stderr
    assert offline.stderr.count("\n") == 1 and not folder.exists() and hub.seen == []
    online = {
        "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_the_test",
        "HF_HUB_DISABLE_XET": "1",  # Git LFS, which the hub takes as well
    }  # fmt: skip
    commands = [
        push(tmp_path / "traces", "traces", TRACES), push(tmp_path / "model", "model", STUDENT),
        push(tmp_path / "again", "model", STUDENT, "org/refused"),
    ]  # fmt: skip
    *pushed, refused = in_one_process(commands, environment(tmp_path) | online)
    for done, what, use in zip(
        pushed, ("traces", "model"), ("load_dataset", "from_pretrained"), strict=True
    ):
        folder = tmp_path / what
        assert done.returncode == 0, done.stderr
        assert f"pushed: {hub.url}/" in done.stdout
        written = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
        assert hub.files[what] == {name: file.read_bytes() for name, file in written.items()}
        assert f'{use}("org/name"' in (folder / "README.md").read_text()
    assert len(hub.large) == 1, "the model's weights"
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "hf upload org/refused" in refused.stderr and (tmp_path / "again/README.md").is_file()
