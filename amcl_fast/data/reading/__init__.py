"""Bytes of images, read and checked ahead of their use by a process of its own.

`reader` is this process's side and `reader_process` the other, with `contents` to read where an image lies and
`reduction` to make large ones smaller.
"""
