"""Training: the loop, the processes that share it, and the folder of a run."""
