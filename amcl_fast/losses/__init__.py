"""The losses of the frameworks as modules, with no trainer in sight.

Each is an operator plus a temperature: a float gives the framework's baseline (NT-Xent, DCL, MoCo's InfoNCE,
SimSiam, Barlow Twins), an `AdaptiveTemperature` gives its AMCL form, a `LearnedTemperature` gives SimCLR and MoCo one τ
that learns. Source: Wang et al., "Adaptive Multi-head Contrastive Learning", ECCV 2024 (arXiv 2310.05615).

Common to all:

- Projections are (N, C, d), or (N, d) for one head. Heads are summed, anchors averaged.
- A call is of two views of a batch; `of_views` takes any number of them, and is the mean over pairs (docs/losses.md).
- Everything is evaluated in float32 or better, also under autocast, since 1/τ amplifies rounding. One exception:
  on tensor cores (backend `triton`) the matrix products read half precision if the inputs have it or autocast
  asks for it; what follows them is float32. The result is a 0-dim float32 tensor (float64 for float64 inputs).
- A constant temperature has a constant regulariser, which is left out: `beta` matters only with an
  `AdaptiveTemperature`.
- Rows may have any finite size. One shorter than 1e-12, a row of zeros say, is divided by 1e-12 instead of its norm,
  as torch's normalize does: its gradient is up to 1e12 times that of a direction, no more.
- NaN and infinity in an input are a ValueError on the CPU. On other devices, where looking would wait for the
  device, and in compiled code, they make the loss NaN, never a number.
- Derivatives are first derivatives, backwards. Forward-mode differentiation, torch.func and second derivatives take
  backend="reference", which `auto` is under the first two; the other backends refuse them.
- `last_shape` is how the latest call read its projections, and the representation shows it; a batch N smaller than
  the number of heads C, as (C, N, d) would have it, is a warning, once.
- `last_stats` describes the latest call; 0-dim detached tensors, so reading them is the only synchronisation. Empty
  after a call in forward mode or torch.func. `amcl_fast.diagnose` says what is wrong with them.
- On a GPU a step on the backend `triton` waits for nothing and depends on no value, so CUDA graphs capture it, without
  `gather`: `torch.cuda.make_graphed_callables(loss, (z1, z2))`, or the whole step (docs/losses.md).
- `recommended(dim)` makes the AMCL form that trains, `released(dim)` the authors' own.
- ValueError or TypeError names the argument that is wrong, what was given and what is accepted.
"""

from .barlow_twins import BarlowTwinsLoss
from .base import Shape as Shape
from .inputs import NonFiniteInputError as NonFiniteInputError
from .moco import MoCoLoss
from .simclr import SimCLRLoss
from .simsiam import SimSiamLoss

__all__ = ["BarlowTwinsLoss", "MoCoLoss", "SimCLRLoss", "SimSiamLoss"]
