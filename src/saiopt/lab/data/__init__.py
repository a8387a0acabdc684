"""Data: what is on every machine, and what others have published."""
