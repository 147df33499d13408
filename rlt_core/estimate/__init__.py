"""Estimates before anything runs: parameters, memory, disk, tokens, hours and bytes of each node.

Imports no torch. The assumptions are in `data` (lengths), `work` (throughput) and `memory` (share
of a GPU's memory that tensors may take).
"""

from rlt_core.estimate.fit import (
    Machine,
    assumptions,
    describe_disk,
    disk_needed,
    hint,
    require_fit,
    require_servers,
    short,
)
from rlt_core.estimate.nodes import Estimator, NodeEstimate, estimates
