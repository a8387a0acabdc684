"""Gradient statistics over training, and every picture that the package draws."""

from saiopt.analysis.gsnr import GSNRProbe
from saiopt.analysis.gsnr_rows import GSNRRow

__all__ = ["GSNRProbe", "GSNRRow"]
