"""Questions to learn from and to be tested on: read, checked, deduplicated and split."""

import operator
from collections.abc import Mapping

from pydantic import Field

from rlt_core.config import DataConfig, Frozen
from rlt_core.prompts.format import PromptFormat
from rlt_core.stages.base import Stage
from rlt_core.stages.cost import Cost


class DatasetPrepConfig(Frozen):
    """The source stands here by its content, not by its path."""

    data: DataConfig
    format: PromptFormat
    evaluated: dict[str, str] = Field(default={})
    """Evaluation set -> commit of its data set on the hub (a generated one has none): what
    training questions are compared with, beside the data's own held-out test."""
    benchmarks: dict[str, DataConfig] = Field(default={}, exclude_if=operator.not_)
    """The user's own evaluation sets, by their content."""


def _check(config: DatasetPrepConfig, paths: Mapping[str, str]) -> None:
    from rlt_core.data.prepare import check_data
    from rlt_core.evaluation.benchmarks import own_task

    if {config.data.source, config.data.test_source} & paths.keys():
        check_data(config.data.located(paths), config.format)
    for name, own in config.benchmarks.items():
        own_task(name, own.located(paths))


STAGE = Stage(
    "dataset-prep",
    version=3,
    kind="dataset",
    config=DatasetPrepConfig,
    tables=("questions", "dropped", "eval_overlaps"),
    sections=("data", "rl_data", "countdown"),
    essentials=("source", "n_train", "n_validation", "n_test", "max_prompt_tokens"),
    inputs={
        "tokenizer": "The imported base model whose tokenizer measures lengths",
        "tested": "A data set whose test questions may not be trained on",
    },
    cost=lambda config, inputs: Cost(makes=inputs.prepared(config.data)),
    check=_check,
)
