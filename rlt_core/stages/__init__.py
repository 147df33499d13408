"""The stages: one file each, with its config class and its declaration.

A stage's version is raised by hand when its output would change for the same config; a test holds
a digest of the sources of each stage and fails until that was decided.
"""

from __future__ import annotations

from typing import Any

from rlt_core.config import Frozen
from rlt_core.stages import (
    base_model,
    dataset_prep,
    evaluation,
    rank_statistics,
    report,
    score_import,
    student_grpo,
    student_sft,
    teacher_grpo,
    teacher_sft,
    trace_generation,
    trace_import,
    trace_refinement,
    trace_scoring,
)
from rlt_core.stages.base import Kind, Stage
from rlt_core.stages.base_model import BaseModelConfig
from rlt_core.stages.dataset_prep import DatasetPrepConfig
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

__all__ = [
    "STAGES",
    "BaseModelConfig",
    "DatasetPrepConfig",
    "EvaluationStageConfig",
    "Kind",
    "RankStatisticsConfig",
    "ReportConfig",
    "ScoreImportConfig",
    "Stage",
    "StudentGRPOStageConfig",
    "StudentSFTStageConfig",
    "TableRow",
    "TeacherGRPOStageConfig",
    "TeacherSFTStageConfig",
    "TraceGenerationConfig",
    "TraceImportConfig",
    "TraceRefinementConfig",
    "TraceScoringConfig",
    "parse_config",
]

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        dataset_prep,
        base_model,
        teacher_sft,
        teacher_grpo,
        trace_generation,
        trace_import,
        trace_refinement,
        trace_scoring,
        score_import,
        student_sft,
        student_grpo,
        evaluation,
        rank_statistics,
        report,
    )
}


def parse_config(stage: str, config: dict[str, Any]) -> Frozen:
    """Return a stage's config from its JSON form."""
    return STAGES[stage].config.model_validate(config)
