"""Benchmarks of a model: lighteval runs them, our engine answers, our killable grader judges."""
