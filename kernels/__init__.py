"""Triton kernels of the three operators: pure functions on tensors, without autograd.

- `align`: row-wise attraction, normalisation fused.
- `select`, `gathered`: contrast over the κ hardest candidates; which they are, then the work on those alone.
- `dense`: contrast over all candidates, tile by tile.
- `decorrelate`: Barlow Twins, a strip of pairs of channels at a time.

`amcl_fast.ops.triton` joins them to autograd. Cost model and resource table: docs/kernels.md.
"""
