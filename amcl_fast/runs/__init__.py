"""The directory of a run: its files and their names, its lock, its settings and checkpoints, and how they are read."""
