"""Evaluation of a model on benchmarks: lighteval runs them with our engine and our grader."""
