"""Loaders: batches of torch tensors from DALI, resumable, not ended by a bad file.

`contrastive` is the training's and `evaluation` that of everything else. `order` says which image comes when, `checked`
what DALI may decode of them, `bad_files` what is told of the others; `position` is what a checkpoint holds.
"""
