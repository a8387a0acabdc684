"""Searching learning rate and weight decay, with several processes or machines."""
