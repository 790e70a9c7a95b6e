"""A training as the command line runs it, put together from its settings."""
