"""What is pinned is looked up where the hub's own library downloads to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE")
BOTH = """
from huggingface_hub.constants import HF_HUB_CACHE
from rlt_core.hub import cache_folder
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
