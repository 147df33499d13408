"""The Hugging Face hub: what is pinned on this machine, and how it gets here.

Importing this imports no hub library, since keys need it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from rlt_core.errors import UserError
from rlt_core.hf_hub import MODEL_FILES

RepoType = Literal["model", "dataset"]
UNPINNED = "unpinned"


def cache_folder() -> Path:
    """The hub's cache on this machine (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME), as its library
    finds it."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{caches}/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def pinned(repo: str, revision: str | None, kind: RepoType) -> str:
    """The commit that stands for a repository here: the given one, or the fetched one.

    `unpinned` if neither is: such a node can be planned, not run.
    """
    if revision:
        return revision
    main = cache_folder() / f"{kind}s--{repo.replace('/', '--')}" / "refs" / "main"
    return main.read_text().strip() if main.is_file() else UNPINNED


def download_size(repo: str, revision: str | None, kind: RepoType) -> int:
    """Bytes of the files that would be downloaded and are not here yet. Raises UserError."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects

    try:
        api = HfApi()
        about = api.model_info if kind == "model" else api.dataset_info
        info = about(repo, revision=revision, files_metadata=True)
    except Exception as error:  # the hub's client raises many kinds; all mean: not to be had
        raise _unreachable(repo, error) from None
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    patterns = list(MODEL_FILES) if kind == "model" else None
    return sum(
        files[name]
        for name in filter_repo_objects(files, allow_patterns=patterns)
        if not isinstance(
            try_to_load_from_cache(repo, name, revision=info.sha, repo_type=kind), str
        )
    )


def download(repo: str, revision: str | None, kind: RepoType) -> str:
    """Download a repository's files and pin it; returns its commit. Raises UserError."""
    from huggingface_hub import snapshot_download

    patterns = list(MODEL_FILES) if kind == "model" else None
    try:
        folder = snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns)
    except Exception as error:
        raise _unreachable(repo, error) from None
    return Path(folder).name


def _unreachable(repo: str, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"hub repository {repo} cannot be had: {first}; check its name, the network "
        "(HF_HUB_OFFLINE=0), and HF_TOKEN where it is gated"
    )
