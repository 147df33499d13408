"""The keys of all nodes of three profiles: a refactor leaves every one as it is.

A key changes when a stage's version, its config or an input changes; artifacts in people's stores
are then not found again. After a deliberate change: `make digests`.
"""

import json
import os
from pathlib import Path

import pytest

from rlt_core.experiments import ALL, targets
from rlt_core.graph import upstream
from rlt_core.overrides import load_config

FOLDER = Path(__file__).with_name("keys")


@pytest.mark.parametrize("profile", ["smoke", "tiny", "paper-7b"])
def test_the_keys_of_all_nodes_are_those_of_before(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # nothing is pinned there
    config = load_config(profile, [])
    roots = [*targets("full-pipeline", config), *targets(ALL, config)]
    keys = {node.name: node.key for node in upstream(roots)}
    file = FOLDER / f"{profile}.json"
    if os.environ.get("RENEW_DIGESTS"):
        file.write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")
    assert keys == json.loads(file.read_text())
