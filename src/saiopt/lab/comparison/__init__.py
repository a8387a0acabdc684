"""Optimizers side by side, and which of them can be told apart."""
