"""Step time and temporary memory of optimizers, beside the memory bus's floor."""
