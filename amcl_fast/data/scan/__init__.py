"""Which files are images that DALI survives, before a run begins.

`walk` lists files; `headers` looks at one, `header_process` at many; `undecodable` decodes those that leave doubts;
`verdict_cache` keeps what was found of each. `check` does all of that, `classes` for folders of classes. `images` is
what comes of it.
"""
