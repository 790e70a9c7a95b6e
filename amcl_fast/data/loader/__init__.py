"""Loaders: batches of torch tensors from DALI, resumable, not ended by a bad file."""
