"""What a graph will take, before anything runs: parameters, memory of a GPU, tokens, hours, bytes.

Imports no torch. What is assumed stands in `data` (lengths), `work` (throughput) and `memory`
(what tensors may take of a GPU).
"""

from rlt_core.estimate.assumed import assumptions
from rlt_core.estimate.fit import require_fit
from rlt_core.estimate.nodes import Estimate, Estimator, estimates, on_gpu

__all__ = ["Estimate", "Estimator", "assumptions", "estimates", "on_gpu", "require_fit"]
