"""The stages: one file each, with its config class and its declaration `STAGE`.

A stage's version is raised by hand when its output would change for the same config; a test holds
a digest of the sources of each stage and fails until that was decided.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from rlt_core.config import Frozen
from rlt_core.extensions import WithEntryPoints
from rlt_core.stages.base import Kind, Stage
from rlt_core.stages.base_model import BaseModelConfig
from rlt_core.stages.dataset_prep import DatasetPrepConfig
from rlt_core.stages.endpoint_generation import EndpointGenerationConfig
from rlt_core.stages.evaluation import EvaluationStageConfig
from rlt_core.stages.rank_statistics import RankStatisticsConfig
from rlt_core.stages.report import ReportConfig, TableRow
from rlt_core.stages.score_import import ScoreImportConfig
from rlt_core.stages.student_grpo import StudentGRPOStageConfig
from rlt_core.stages.student_sft import StudentSFTStageConfig
from rlt_core.stages.teacher_grpo import TeacherGRPOStageConfig
from rlt_core.stages.teacher_sft import TeacherSFTStageConfig
from rlt_core.stages.trace_generation import TraceGenerationConfig
from rlt_core.stages.trace_import import TraceImportConfig
from rlt_core.stages.trace_refinement import TraceRefinementConfig
from rlt_core.stages.trace_scoring import TraceScoringConfig
from rlt_core.stages.trace_selection import TraceSelectionStageConfig

_FILES = [file.name for file in iter_modules(__path__) if file.name not in ("base", "cost")]
_OURS: list[Stage] = [import_module(f"{__name__}.{name}").STAGE for name in _FILES]

STAGES = WithEntryPoints("rlt.stages", {stage.name: stage for stage in _OURS})
"""All stages, including those of installed packages."""


def parse_config(stage: str, config: dict[str, Any]) -> Frozen:
    """Return a stage's config from its JSON form."""
    return STAGES[stage].config.model_validate(config)
