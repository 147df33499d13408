"""An empty store: a folder, and a prefix on the S3 server."""

import pytest

from rlt_core.store import Store


@pytest.fixture
def store(store_root: str) -> Store:
    return Store(store_root)
