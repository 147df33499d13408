"""A random model of a few thousand parameters, its prompter, and workspaces on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rlt_core.config import ScratchModel, StageResources
from rlt_core.formats import load_format
from rlt_core.models import load_tokenizer, new_model, save_model, tiny_tokenizer
from rlt_core.prompts import Prompter
from rlt_core.store import Workspace
from rlt_core.store.files import Files

FORMAT = load_format("tiny")


def scratch_folder(folder: Path, seed: int = 0) -> Path:
    config = ScratchModel(layers=2, width=16, heads=2, max_positions=160, seed=seed)
    tokenizer = tiny_tokenizer(FORMAT, config.max_positions)
    save_model(new_model(config, tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scratch_folder(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="session")
def prompter(model: Path) -> Prompter:
    return Prompter(FORMAT, load_tokenizer(model))


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[[str], Workspace]:
    return lambda key: Workspace(Files(str(tmp_path / "store")), key)


@pytest.fixture
def resources() -> StageResources:
    return StageResources(device="cpu", micro_batch_size=4, checkpoint_every_steps=2)
