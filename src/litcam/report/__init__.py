"""The evaluation as one HTML page that needs no other file and no network."""

from litcam.report.contents import Drift, ReportImage, ReportRun
from litcam.report.page import build_report, write_report

__all__ = ["Drift", "ReportImage", "ReportRun", "build_report", "write_report"]
