"""What a graph will take, before anything runs: parameters, memory of a GPU, tokens, hours, bytes.

Imports no torch. What is assumed stands in `data` (lengths), `work` (throughput) and `memory`
(what tensors may take of a GPU).
"""

from rlt_core.estimate.assumed import assumptions
from rlt_core.estimate.fit import require_fit, require_servers, smaller_layouts
from rlt_core.estimate.host import Machine
from rlt_core.estimate.nodes import Estimate, Estimator, estimates, on_gpu
from rlt_core.estimate.room import disk_needed, require_room, said_of_disk, short

__all__ = [
    "Estimate", "Estimator", "Machine", "assumptions", "disk_needed", "estimates", "on_gpu",
    "require_fit", "require_room", "require_servers", "said_of_disk", "short", "smaller_layouts",
]  # fmt: skip
