"""Triton kernels of the three operators and of what leads to them: pure functions on tensors, without autograd.

- `rows`: projections made ready for the operators; `total`: the sum over the anchors after them.
- `align`: row-wise attraction, normalisation fused.
- `select`, `topk`: contrast over the κ hardest candidates; which they are, then the work on those alone.
- `dense`: contrast over all candidates, tile by tile.
- `perplexity`: temperatures at which an anchor's negatives have a given perplexity, for both of these.
- `decorrelate`: Barlow Twins, a strip of pairs of channels at a time.

They share `common` and `tile`. `launch` is how a kernel is launched, `tuning` with which parameters on which device.

`amcl_fast.ops.triton` joins them to autograd. Cost model and resource table: docs/kernels.md.
"""
