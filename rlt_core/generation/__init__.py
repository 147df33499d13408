"""Completions from a model folder, with one interface. Importing this imports no engine."""

from pathlib import Path

from rlt_core.config import DType, StageResources
from rlt_core.extensions import is_path, load
from rlt_core.generation.engine import Completion, Engine, sample_seed


def open_engine(model_folder: Path, dtype: DType, resources: StageResources) -> Engine:
    """Open the engine that `resources.engine` names, with the model loaded. Close it when done.

    Raises UserError if the engine is not installed.
    """
    if resources.engine == "vllm":
        from rlt_core.generation.vllm import VLLMEngine

        return VLLMEngine(model_folder, dtype, resources)
    if is_path(resources.engine):
        engine: Engine = load(resources.engine)(model_folder, dtype, resources)
        return engine
    from rlt_core.generation.hf import TransformersEngine
    from rlt_core.models import compute_dtype, load_model

    model = load_model(model_folder, compute_dtype(dtype, resources.device), resources.device)
    return TransformersEngine(model, resources.tokens_per_batch)
