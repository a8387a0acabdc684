"""The memory that training takes, of models and optimizers by name."""
