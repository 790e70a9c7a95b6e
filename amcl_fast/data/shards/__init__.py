"""Tars of samples, as WebDataset has them: read, and written by `amcl-fast pack`.

`patterns` says which tars are meant, `read` finds the images in them, by the `index` of each, of the headers that `tar`
reads. `pack` writes shards, with what `pack_process` makes of each image.
"""
