"""Models and tokenizers: built from scratch, imported, loaded and saved (safetensors only)."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from rlt_core.chat_templates import CHATML, Chats
from rlt_core.config import (
    ArtifactModel,
    FolderModel,
    HubModel,
    ModelSource,
    PackageModel,
    ScratchModel,
    StageResources,
)
from rlt_core.environment import disk_space
from rlt_core.errors import UserError
from rlt_core.hf_hub import (
    MODEL_FILES,
    check_weights,
    model_files,
    package_gguf,
    pinned,
    snapshot,
)
from rlt_core.prompts.format import PromptFormat
from rlt_core.scoring.trial import check_rows, try_model, try_tokenizer

PAD, TURN_START, TURN_END = "<pad>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
SETTINGS = re.compile(
    r"_*(attn|experts)_implementation.*|auto_map|kernel_config|use_kernels|transformers_weights"
    r"|output_(attentions|hidden_states|router_logits)|return_dict"
)
"""Fields of a config.json that say how its makers ran the model: with which code, from which files.
They are never obeyed, and an import drops them."""
GENERATION_NOTES = (
    "_from_model_config", "transformers_version", "output_attentions", "output_hidden_states",
    "use_cache",
)  # fmt: skip
"""Fields that saving a neutral generation config adds to its special tokens."""
ROLES = ("system\n", "user\n", "assistant\n")


# ---------------------------------------------------------------- from scratch
def tiny_tokenizer(format: PromptFormat, max_positions: int = 512) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer with a ChatML template; any text round-trips.

    Each of the format's tags and the template's role lines is one token; tags are ordinary tokens,
    so that decoding keeps them, as with real models' tokenizers.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, TURN_START, TURN_END])
    words = dict.fromkeys((*ROLES, *format.tags))
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=TURN_END,
        pad_token=PAD,
        extra_special_tokens=[TURN_START],
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def new_model(config: ScratchModel, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build a Llama with random weights, the same for the same config and vocabulary."""
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=8 * config.width // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_positions,
        initializer_range=config.width**-0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(llama).eval()


# ---------------------------------------------------------------- load and save
def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the fast tokenizer of a local model folder."""
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{folder}: its tokenizer is a slow one; save it as tokenizer.json first")
    return tokenizer


def load_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load the causal language model of a local folder, in eval mode. Reads safetensors only.

    `dtype` may be `auto`: `saved_dtype`. Tensors go one by one from the mapped file to the device.
    Without a change of number format, all processes of a machine share one copy in main memory, and
    a GPU's models leave none there. Raises UserError for missing weights, and for a folder from
    which anything but its own JSON and safetensors files would be read.
    """
    model_files(folder)
    check_weights(folder)
    place = pick_device(device)
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    saved = json.loads((folder / "config.json").read_text())
    plain = _without_settings(saved)
    loader: Any = AutoModelForCausalLM
    model, found = loader.from_pretrained(
        folder,
        config=config if plain == saved else type(config).from_dict(plain),
        dtype=saved_dtype(folder) if dtype == "auto" else dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        device_map={"": place},
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{folder}: {len(missing)} weights are missing, for instance {missing[0]}; copy or "
            "download the model again"
        )
    return model.to(place).eval()


def saved_dtype(folder: Path) -> str:
    """Return the number format of the saved weights of a model folder, whatever its config.json
    says."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    return {frozenset({"BF16"}): "bfloat16", frozenset({"F16"}): "float16"}.get(
        frozenset(found), "float32"
    )


def _without_settings(config: Any) -> Any:
    """A model's config without its makers' settings for running it."""
    if isinstance(config, list):
        return [_without_settings(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        name: _without_settings(value)
        for name, value in config.items()
        if not SETTINGS.fullmatch(name)
    }


def _neutral(folder: Path) -> dict[str, Any]:
    """The generation config of a model folder: its special tokens, without sampling settings."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            read = json.loads((folder / name).read_text())
            found |= {key: read[key] for key in SPECIAL_TOKENS if read.get(key) is not None}
    return found


@contextmanager
def on_device(model: PreTrainedModel, resources: StageResources) -> Iterator[PreTrainedModel]:
    """Move a frozen model to its device; with `resources.offload`, move it back afterwards, to the
    memory that it was loaded into (of a mapped file, processes share it)."""
    device = pick_device(resources.device)
    outside = {name: each.data for name, each in model.named_parameters() if resources.offload}
    model.to(device)  # type: ignore[arg-type]
    try:
        yield model
    finally:
        if resources.offload:
            for name, parameter in model.named_parameters():
                parameter.data = outside[name]


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write config.json, safetensors and tokenizer files."""
    with disk_space(folder, sum(each.numel() * each.element_size() for each in model.parameters())):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def pick_device(device: str) -> str:
    """Return the device; `auto` is the GPU if there is one. Raises UserError for `cuda` without."""
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and found == "cpu":
        raise UserError("device=cuda: torch finds no GPU on this machine; `rlt doctor` says why")
    return found if device == "auto" else device


def compute_dtype(dtype: str, device: str) -> str:
    """Return the number format that a device computes in: float32 in place of bfloat16 on a CPU
    without instructions for it, where a product in bfloat16 takes about ten times as long."""
    slow = device != "cuda" and pick_device(device) == "cpu" and not bfloat16_on_cpu()
    return "float32" if slow else dtype


def bfloat16_on_cpu() -> bool:
    """Return whether oneDNN multiplies bfloat16 on this CPU (as PyTorch's inductor asks it)."""
    ask: Any = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and bool(ask._is_mkldnn_bf16_supported())


def gpus() -> int:
    """Return the number of GPUs that this process sees."""
    return torch.cuda.device_count()


def use_threads(threads: int) -> None:
    """Set the CPU threads of this process."""
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- import
def import_model(source: ModelSource, out: Path) -> dict[str, float]:
    """Write an imported model as a model folder `out`, and test it (`rlt_core.scoring.trial`);
    return its metrics. Raises UserError."""
    match source:
        case HubModel():
            _copy(snapshot(source.repo, source.revision, "model", MODEL_FILES), out)
        case FolderModel():
            _copy(Path(source.path), out)
        case PackageModel():
            _convert_gguf(package_gguf(source.package), out)
        case ScratchModel() | ArtifactModel():
            raise ValueError(f"{source.kind}: not a model from outside")
    name = getattr(source, "repo", None) or getattr(source, "path", None) or source.kind
    tokenizer, chats = try_folder(out, name)
    _neutralise(out)
    model = try_loading(out, "auto", tokenizer, chats, name)
    return {"parameters": model.num_parameters(), "system_turns": float(chats.takes_system)}


def local_folder(source: HubModel | PackageModel, out: Path) -> Path:
    """Return the folder of a model that is not tested: in the hub's cache, or one below `out`, into
    which a package's is converted. Raises UserError."""
    if isinstance(source, HubModel):
        commit = pinned(source.repo, source.revision, "model")
        return snapshot(source.repo, commit, "model", MODEL_FILES)
    folder = out / source.package
    if not folder.exists():
        _convert_gguf(package_gguf(source.package), folder)
    return folder


def try_folder(folder: Path, name: str) -> tuple[PreTrainedTokenizerFast, Chats]:
    """Return the tokenizer of an imported folder, and its chat template's chats. Raises UserError
    for what the pipeline cannot use, with the reason."""
    with _loading(name):
        model_files(folder)
        check_weights(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = load_tokenizer(folder)
    chats = try_tokenizer(tokenizer, name)
    check_rows(config.get_text_config().vocab_size, tokenizer, chats, name)
    return tokenizer, chats


def try_loading(
    folder: Path, dtype: str, tokenizer: PreTrainedTokenizerFast, chats: Chats, name: str
) -> PreTrainedModel:
    """Load the model of a folder that passed `try_folder`, and test it. Raises UserError."""
    with _loading(name):
        model = load_model(folder, dtype)
    model.generation_config = GenerationConfig.from_dict(_neutral(folder))
    try_model(model, tokenizer, chats, name)
    return model


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Errors of imported files, with which anything may be wrong, as a UserError in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name}: cannot be loaded (remote code is never run): {said}") from None


def _neutralise(folder: Path) -> None:
    """Rewrite the configs of a folder without settings for running the model."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if _without_settings(config) != config:
        file.write_text(json.dumps(_without_settings(config), indent=2) + "\n")
    file = folder / "generation_config.json"
    has = json.loads(file.read_text()) if file.is_file() else {}
    if _neutral(folder) != {k: v for k, v in has.items() if k not in GENERATION_NOTES}:
        GenerationConfig.from_dict(_neutral(folder)).save_pretrained(folder)


def _copy(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in model_files(folder):
        shutil.copyfile(file, out / file.name)


def _convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise a GGUF file into bfloat16 safetensors with a plain config and its tokenizer."""
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **where)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    plain = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        plain.pop(key, None)
    model = AutoModelForCausalLM.from_config(
        type(quantised.config).from_dict(plain), dtype=torch.bfloat16
    )
    model.load_state_dict(quantised.state_dict())
    save_model(model, tokenizer, out)
