"""A small vit-digits on the command line."""

TINY = [
    "--set",
    "task.hidden_size=16",
    "task.num_layers=1",
    "task.num_heads=2",
    "task.patch_size=4",
    "batch_size=16",
    "eval_every=50",
    "checkpoint_every=20",
    "--threads",
    "1",
]
