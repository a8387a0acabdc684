"""Recipes, baselines and the training loop that compares optimizers.

The modules are imported by name (``saiopt.lab.compare``), because a command that
only lists recipes must not load a model library.
"""
