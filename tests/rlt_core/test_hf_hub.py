"""What is pinned is looked up where the hub's own library downloads to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlt_core.experiments import targets
from rlt_core.graph import upstream
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
