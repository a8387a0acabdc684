"""Recipes and optimizers that users bring, from their files or from a notebook."""
