"""Which files are images that DALI survives, before a run begins.

`walk` lists files; `headers` looks at one, `header_process` at many; `undecodable` decodes those that leave doubts;
`verdict_cache` keeps what was found of each. `classes` goes through folders of classes so. `left_out` tells what is
left out.
"""
