"""A hub cache with little data sets in the schemas of the hub."""

from pathlib import Path

import pytest

from tests.hub_cache import write_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder."""
    write_hub(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return tmp_path
