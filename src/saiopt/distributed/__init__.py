"""Which entries of a block live on this rank, and what is true of all its ranks."""
