"""Measurements along a run: g-SNR, and the learning rate that a rule gives."""
