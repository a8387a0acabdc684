"""Gradient statistics over training, and every picture that the package draws."""

from saiopt.analysis.gsnr import GSNRProbe, GSNRRow

__all__ = ["GSNRProbe", "GSNRRow"]
