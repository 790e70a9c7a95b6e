"""What is measured on a GPU: operands, settings and targets of each case."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        name: what the table calls it.
        operator: `contrast`, `align` or `decorrelate`.
        heads, rows, candidates, width: C, anchors (pairs, channels), candidates (0: the anchors themselves, with
            SimCLR's skipped columns) and d (the batch for `decorrelate`).
        settings: keyword arguments of the operator.
        gradients: which of x, y, φ(x), φ(y) take part in the backward pass.
        peers: names in `benchmarks.peers` to time beside the kernels.
        targets: least speed-up over a peer, by its name; `memory`: least ratio of dense memory to ours; `products`:
            most times the bare matrix products; `bandwidth`: least share of the device's copy bandwidth; `gib`: most
            memory beside inputs and gradients.
    """

    name: str
    operator: str
    heads: int
    rows: int
    candidates: int
    width: int
    settings: dict[str, Any]
    gradients: tuple[bool, bool, bool, bool] = (True, True, True, True)
    peers: tuple[str, ...] = ("dense", "compiled", "products")
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def adaptive(self) -> bool:
        """Whether τ is learned."""
        return self.settings["tau_min"] < self.settings["tau_max"]

    def operands(self, device: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor | None]:
        """Arguments of the operator up to its settings, leaves that take part in the backward pass."""
        generator = torch.Generator(device).manual_seed(seed)

        def rows(count: int) -> Tensor:
            z = torch.randn(self.heads, count, self.width, device=device, generator=generator)
            return F.normalize(z, dim=-1) if self.operator == "contrast" else z

        x = rows(self.rows)
        own = self.operator == "contrast" and not self.candidates
        y = x.clone() if own else rows(self.candidates or self.rows)
        phi: list[Tensor | None] = [None, None]
        if self.adaptive:
            scale = 2 / self.width**0.25
            phi = [scale * torch.randn(z.shape, device=device, generator=generator) for z in (x, y)]
        tensors = [None if z is None else z.to(dtype) for z in (x, y, *phi)]
        for tensor, needed in zip(tensors, self.gradients, strict=True):
            if tensor is not None:
                tensor.requires_grad_(needed)
        if self.operator != "contrast":
            return [*tensors, None]
        index = torch.arange(self.rows, device=device)
        pairs = torch.stack([index, (index + self.rows // 2) % self.rows], dim=1)
        return [*tensors, None, pairs if own else None]


_AMCL = {"tau_min": 0.05, "tau_max": 2.0, "beta": 1e-4}
_CONTRAST = _AMCL | {"negatives": "topk_mean", "top_k": 100}
_NT_XENT = {"tau_min": 0.5, "tau_max": 0.5, "beta": 0.0, "negatives": "softmax", "top_k": None}

CASES = (
    Case(
        "SimCLR, N = 4096", "contrast", 3, 8192, 0, 128, _CONTRAST,
        peers=("dense", "compiled", "chunked", "products"),
        targets={"products": 2, "dense": 10, "compiled": 5, "memory": 50},
    ),
    Case(
        "SimCLR, N = 65,536", "contrast", 3, 131_072, 0, 128, _CONTRAST, peers=("products in turns",),
        targets={"gib": 4},
    ),
    Case(
        "MoCo, N = 256, queue 65,536", "contrast", 3, 512, 65_536, 128, _CONTRAST,
        gradients=(True, False, True, True), peers=("dense", "compiled", "chunked", "products"),
        targets={"dense": 5},
    ),
    Case("NT-Xent, N = 4096", "contrast", 3, 8192, 0, 128, _NT_XENT, targets={"compiled": 3}),
    Case(
        "SimCLR, N = 4096, softmax over all", "contrast", 3, 8192, 0, 128,
        _AMCL | {"negatives": "softmax", "top_k": None},
    ),
    Case(
        "Barlow Twins, d = 8192, N = 1024", "decorrelate", 1, 8192, 0, 1024,
        _AMCL | {"lambd": 5e-3, "beta": 1e-6}, targets={"dense": 5, "memory": 50},
    ),
    Case(
        "SimSiam, d = 2048, N = 4096", "align", 3, 4096, 0, 2048, _AMCL | {"weight": 0.5},
        gradients=(True, False, True, True), peers=("dense", "compiled"), targets={"bandwidth": 0.7},
    ),
)  # fmt: skip
