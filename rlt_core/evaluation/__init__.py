"""Benchmarks of a model: lighteval runs them, our engine answers, our killable grader judges."""

from rlt_core.evaluation.run import run_evaluation
from rlt_core.evaluation.tasks import BENCHMARKS, EvalTask, benchmark_task

__all__ = ["BENCHMARKS", "EvalTask", "benchmark_task", "run_evaluation"]
