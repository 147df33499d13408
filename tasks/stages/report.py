"""report: tables, figures and sample texts of all that a run made."""

from __future__ import annotations

from rlt_core.report.gather import gather
from rlt_core.report.render import render_report
from rlt_core.stages import ReportConfig
from tasks.job import Job


def run(job: Job) -> dict[str, float]:
    """Reads every input's tables."""
    config = job.config_as(ReportConfig)
    inputs = {name: (manifest, job.tables(name)) for name, manifest in job.manifests.items()}
    data = gather(inputs, config, job.spec.key)
    render_report(data, job.out)
    return {"nodes": len(inputs)}
