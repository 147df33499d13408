"""A random model of a few thousand parameters, its renderer, and workspaces on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import FORMAT, scratch_folder

from rlt_core.config import StageResources
from rlt_core.models import load_tokenizer
from rlt_core.prompts.renderer import Renderer
from rlt_core.store import Workspace
from rlt_core.store.files import Files


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scratch_folder(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="session")
def renderer(model: Path) -> Renderer:
    return Renderer(FORMAT, load_tokenizer(model))


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[[str], Workspace]:
    return lambda key: Workspace(Files(str(tmp_path / "store")), key)


@pytest.fixture(scope="session")
def resources() -> StageResources:
    return StageResources(device="cpu", micro_batch_size=4, checkpoint_every_steps=2)
