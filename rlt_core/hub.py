"""What is pinned of the Hugging Face hub on this machine. Imports no hub library: keys need it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

RepoType = Literal["model", "dataset"]
UNPINNED = "unpinned"


def cache_folder() -> Path:
    """The hub's cache on this machine (HF_HUB_CACHE, HF_HOME)."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def pinned(repo: str, revision: str | None, kind: RepoType) -> str:
    """The commit that stands for a repository here: the given one, or the fetched one.

    `unpinned` if neither is: such a node can be planned, not run.
    """
    if revision:
        return revision
    main = cache_folder() / f"{kind}s--{repo.replace('/', '--')}" / "refs" / "main"
    return main.read_text().strip() if main.is_file() else UNPINNED
