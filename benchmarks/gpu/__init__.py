"""All that needs a GPU, in one command: `python -m benchmarks.gpu`; see `command`."""
