"""The report: the tables that offaxis writes, as one HTML file that opens offline."""

from offaxis.report.page import render

__all__ = ["render"]
