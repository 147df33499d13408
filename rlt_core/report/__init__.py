"""The report of a run: tables, figures and sample texts from the artifacts it made."""

from rlt_core.report.gather import ReportData, gather
from rlt_core.report.render import render_report

__all__ = ["ReportData", "gather", "render_report"]
