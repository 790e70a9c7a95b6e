"""What data.root may be, and the images that are found there.

`find` tells what was given; `folder`, `lists` and amcl_fast.data.shards look for the images; `numbered` is what lists
and shards have in common. `named` are the data sets that have a name, which `builtin` (of `textures`) draws and
`download` fetches. `list_cache` keeps what was found for the other processes of the machine.
"""
