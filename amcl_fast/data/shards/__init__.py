"""Tars of samples, as WebDataset has them: read, and written by `amcl-fast pack`.

`patterns` says which tars are meant, `read` finds the images in them, by the `index` of each, of the headers that `tar`
reads. `pack` writes shards: `pack_process` makes what goes into one of an image, `writer` is one shard, `manifest` what
is known of all of them.
"""
