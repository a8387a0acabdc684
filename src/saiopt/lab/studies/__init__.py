"""Studies: rows that are made once, in several processes, and kept."""
