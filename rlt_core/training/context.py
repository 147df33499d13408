"""What a training gets from its stage: where it writes, on what, and to whom it reports."""

from dataclasses import dataclass
from pathlib import Path

from rlt_core.config import StageResources
from rlt_core.progress import Progress
from rlt_core.store import Workspace


@dataclass(frozen=True)
class TrainingContext:
    """The surroundings of one training."""

    stage: str
    """Its name in messages and in `train_steps`."""
    seed: int
    out: Path
    """Folder for `model/` and `train_steps.parquet`."""
    work: Workspace
    """Where checkpoints are kept: called again with the same one, the training resumes."""
    resources: StageResources
    progress: Progress
    name: str = ""
    """The node's, with its profile and seed, in a tracker."""
