"""`rlt export hub` of a finished run: other libraries load it, TRL trains on it, a hub gets it."""

import base64
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rlt_core.rows import read_rows
from rlt_core.store import Store
from tests.flows.conftest import COMMAND, Rlt, environment

STUDENT, TRACES = "smoke/student-sft[rlt]@0", "smoke/trace-generation[rlt]@0"


def test_a_student_and_its_traces_are_trained_further_with_trl(
    rlt_inside: Rlt, smoke_store: Path, tmp_path: Path
) -> None:
    model, traces = tmp_path / "model", tmp_path / "traces"
    hub = ("export", "hub", "--store", str(smoke_store), "--what")
    done = rlt_inside(*hub, "model", "--to", str(model), STUDENT)
    assert done.returncode == 0 and f"written: {model}" in done.stdout, done.stderr
    done = rlt_inside(*hub, "traces", "--to", str(traces), TRACES)
    assert done.returncode == 0 and " (8 rows)" in done.stdout, done.stderr

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


def test_cards_name_lineage_command_and_evaluation(
    rlt_inside: Rlt, smoke_store: Path, tmp_path: Path
) -> None:
    store, cards = Store(str(smoke_store)), {}
    for what, name, card in (("model", STUDENT, ModelCard), ("traces", TRACES, DatasetCard)):
        hub = ("export", "hub", "--what", what, "--to", str(tmp_path / what), name)
        assert rlt_inside(*hub, "--store", str(smoke_store)).returncode == 0
        cards[what] = card.load(tmp_path / what / "README.md")
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


class Hub(ThreadingHTTPServer):
    """The part of the hub's interface that an upload uses."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[str] = []
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        """Bytes sent to Git LFS, by their SHA-256."""
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body, server = self.rfile.read(int(self.headers["content-length"])), self.server
        server.seen.append(self.path)
        answer: dict[str, Any] = {"url": f"{server.url}/org/name"}
        if self.path.endswith("/preupload/main"):
            answer = {"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]}  # fmt: skip
        elif self.path.endswith("/info/lfs/objects/batch"):
            answer = {"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{server.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]}  # fmt: skip
        elif "/commit/main" in self.path:
            for line in map(json.loads, body.splitlines()):
                sent = line["value"]
                if line["key"] == "file":
                    server.files[sent["path"]] = base64.b64decode(sent["content"])
                elif line["key"] == "lfsFile":
                    server.files[sent["path"]] = server.large[sent["oid"]]
            address = f"{server.url}/org/name/commit/{'a' * 40}"
            answer = {"success": True, "commitOid": "a" * 40, "commitUrl": address}
        self.reply(403 if server.refuses else 200, answer)

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        self.server.large[oid] = self.rfile.read(int(self.headers["content-length"]))
        self.reply(200, {})

    def reply(self, status: int, answer: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_nothing_is_pushed_unless_asked_and_then_everything(
    smoke_store: Path, tmp_path: Path
) -> None:
    hub, folder = Hub(), tmp_path / "out"
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    online = {
        "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_the_test",
        "HF_HUB_DISABLE_XET": "1",  # Git LFS, which the hub takes as well
    }  # fmt: skip

    def push(to: Path, what: str, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
        words = ["export", "hub", "--what", what, "--to", str(to), "--push", "org/name", name]
        return subprocess.run(
            [*COMMAND, *words, "--store", str(smoke_store)], capture_output=True, text=True,
            env=environment(tmp_path) | online | variables,
        )  # fmt: skip

    offline = push(folder, "traces", TRACES, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "HF_HUB_OFFLINE=1" in offline.stderr
    assert offline.stderr.count("\n") == 1 and not folder.exists() and hub.seen == []
    for what, name, use in (
        ("traces", TRACES, 'load_dataset("org/name"'),
        ("model", STUDENT, 'from_pretrained("org/name"'),
    ):
        hub.files, folder = {}, tmp_path / what
        done = push(folder, what, name)
        assert done.returncode == 0, done.stderr
        assert f"pushed: {hub.url}/" in done.stdout
        written = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
        assert hub.files == {name: file.read_bytes() for name, file in written.items()}
        assert use in (folder / "README.md").read_text()
    assert len(hub.large) == 1, "the model's weights"
    hub.refuses = True
    refused = push(tmp_path / "again", "model", STUDENT)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert "hf upload org/name" in refused.stderr and (tmp_path / "again/README.md").is_file()
    hub.shutdown()
