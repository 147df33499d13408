"""report: tables, figures and sample texts of a run."""

from rlt_core.report.gather import ReportData
from rlt_core.report.render import render_report
from rlt_core.stages import ReportConfig
from tasks.stage import StageContext


def run(ctx: StageContext) -> dict[str, float]:
    """Render a report of every input's tables."""
    config = ctx.config_as(ReportConfig)
    inputs = {name: (manifest, ctx.tables(name)) for name, manifest in ctx.manifests.items()}
    render_report(ReportData(inputs, config, ctx.spec.key, ctx.store), ctx.out)
    return {"nodes": len(inputs)}
