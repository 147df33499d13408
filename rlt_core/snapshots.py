"""Repositories of the Hugging Face hub at a pinned commit, as folders of the local hub cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlt_core.errors import UserError
from rlt_core.hub import RepoType, cache_folder


def snapshot(repo: str, revision: str, kind: RepoType, patterns: Sequence[str]) -> Path:
    """The folder with a repository's files that match; downloads what the cache lacks.

    Raises UserError when it is neither in the cache nor reachable, or when the hub refuses it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        folder = snapshot_download(
            repo, repo_type=kind, revision=revision, allow_patterns=list(patterns),
            cache_dir=cache_folder(),
        )  # fmt: skip
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"{repo}@{revision} is not in the hub cache and the hub cannot be reached: run "
            "`rlt fetch` for this profile while online"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"{repo}@{revision}: {error}") from None
    return Path(folder)
