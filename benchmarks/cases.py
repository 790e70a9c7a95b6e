"""What is measured: operands, settings, peers and targets of each case, for CPU and GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amcl_fast import AdaptiveTemperature

Operands = list[Tensor | None]
# From operands, as `Case.operands` makes them, to the result.
Run = Callable[..., Tensor]
# The bare matrix products of a dense pass: in `Case.peers` and in results, and no peer, for they have no result.
PRODUCTS = "products"

LOSSES = ("simclr", "moco", "barlow", "infonce")
# What a case runs in, unless it names a dtype: the dtype in which people train there.
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
# Products per second, of the order of what a few cores and a GPU reach: they decide which cases a device gets.
_RATES = {"cpu": 1.5e11, "cuda": 4e14}
# Seconds at that rate.
_LONGEST_CASE = 0.6
PHI = ("0.weight", "0.bias", "2.weight", "2.bias")


@dataclass(frozen=True)
class Case:
    """One operator or one whole loss at one size, forward and backward.

    Attributes:
        name: what the tables call it.
        operator: `contrast`, `align` or `decorrelate` of `amcl_fast.reference`; or one of `LOSSES`, from projections
            to the scalar (`infonce`: from unit rows, one way, as libraries for two modalities have it).
        heads, rows, candidates, width: C, anchors (pairs, channels), candidates (0: as many as anchors, with SimCLR's
            skipped columns) and d (the batch for `decorrelate` and `barlow`).
        settings: keyword arguments of the operator or, but for the range of τ, of the loss. With a `perplexity` each
            anchor of a contrast has the temperature at which its negatives have it.
        gradients: which of x, y, φ(x), φ(y) take part in the backward pass of an operator.
        peers: names of `benchmarks.peers.PEERS` that run beside it, and `PRODUCTS`; what joins by itself has none here.
        targets: by device. Least speed-up over a peer, by its name; `memory`: least ratio of dense memory to ours;
            `products`: most times the bare matrix products; `bandwidth`: least share of the device's copy
            bandwidth; `gib`: most memory beside inputs and gradients. A device with an entry always gets the case.
        dtype: of the operands; empty: the device's in `DTYPES`.
        shared: the anchors of a contrast are its candidates, the same tensors with one gradient, as `SimCLRLoss` has
            it; or else tensors of equal values.
    """

    name: str
    operator: str
    heads: int
    rows: int
    candidates: int
    width: int
    settings: dict[str, Any]
    gradients: tuple[bool, bool, bool, bool] = (True, True, True, True)
    peers: tuple[str, ...] = ("dense", "compiled", PRODUCTS)
    targets: dict[str, dict[str, float]] = field(default_factory=dict)
    dtype: str = ""
    shared: bool = False

    @property
    def adaptive(self) -> bool:
        """Whether τ is learned."""
        return self.settings["tau_min"] < self.settings["tau_max"] and "perplexity" not in self.settings

    @property
    def columns(self) -> int:
        """Candidates of each anchor, those that are skipped included."""
        return self.candidates or self.rows

    @property
    def operations(self) -> float:
        """Floating-point operations of the products of a dense forward and backward pass.

        `align` has none: it moves memory, and a number that is moved takes as long as about a thousand of them.
        """
        tables = (4.0 if self.adaptive else 2.0) * self.heads * self.rows * self.width
        return 1000 * tables if self.operator == "align" else 3 * tables * self.columns

    def fits(self, device: str) -> bool:
        """Whether this case is for the kind of device, `cpu` or `cuda`: it has a target there, or ends soon."""
        return device in self.targets or self.operations / _RATES[device] < _LONGEST_CASE

    def dtype_on(self, device: str) -> torch.dtype:
        """dtype of the operands on `cpu` or `cuda`."""
        return getattr(torch, self.dtype) if self.dtype else DTYPES[device]

    def operands(self, device: str, dtype: torch.dtype, seed: int = 0, *, on_grid: bool = False) -> Operands:
        """Arguments of the operator up to its settings, or of the loss; leaves that take part in the backward pass.

        Args:
            device: where they are.
            dtype: of the floating tensors.
            seed: of the random numbers.
            on_grid: round anchors and candidates to multiples of a power of two, so that float32 forms every
                similarity without rounding, in any order of summation. Then the hardest candidates are the same in
                float32 and in float64, and one that is swapped is an error and no accident of rounding.
        """
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator)

        if self.operator in LOSSES and self.operator != "infonce":
            return self._projections(normal, dtype)

        def table(count: int) -> Tensor:
            z = normal(self.heads, count, self.width)
            if self.operator not in ("contrast", "infonce"):
                return z
            z = F.normalize(z, dim=-1)
            # 2^-9 at d = 128: entries of up to five standard deviations have eight bits, as bfloat16 has.
            step = 2.0 ** -round(7.5 + torch.tensor(self.width / 16).log2().item() / 2)
            return (z / step).round() * step if on_grid else z

        own = self.operator == "contrast" and not self.candidates
        x = table(self.rows)
        if self.operator == "infonce":
            return [z[0].to(dtype).requires_grad_() for z in (x, table(self.columns))]
        y = x.clone() if own else table(self.columns)
        phi: Operands = [None, None]
        if self.adaptive:
            scale = 2 / self.width**0.25
            phi = [scale * normal(*z.shape) for z in (x, y)]
        tensors: Operands = [None if z is None else z.to(dtype) for z in (x, y, *phi)]
        for tensor, needed in zip(tensors, self.gradients, strict=True):
            if tensor is not None:
                tensor.requires_grad_(needed)
        if self.shared:
            tensors = [tensors[0], tensors[0], tensors[2], tensors[2]]
        if self.operator != "contrast":
            return [*tensors, None]
        index = torch.arange(self.rows, device=device)
        pairs = torch.stack([index, (index + self.rows // 2) % self.rows], dim=1)
        return [*tensors, None, pairs if own else None]

    def _projections(self, normal: Any, dtype: torch.dtype) -> Operands:
        """Two views' projections, (N, C, d) or (N, d) for one head, and φ's weights in the order of `PHI`.

        `moco`: queries and keys, then the queue (C, d, K) or (d, K), a view of the rows that it is filled by.
        """
        batch, width = (self.width, self.rows) if self.operator == "barlow" else (self.rows // 2, self.width)
        z1 = normal(*((batch, self.heads, width) if self.heads > 1 else (batch, width)))
        tensors = [z1, z1 + normal(*z1.shape)]
        if self.adaptive:
            weights = AdaptiveTemperature(self.width).phi.state_dict()
            tensors += [normal(*weights[name].shape) / self.width**0.5 for name in PHI]
        operands: Operands = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        if self.operator == "moco":
            keys = F.normalize(normal(*((self.heads,) if self.heads > 1 else ()), self.columns, self.width), dim=-1)
            operands[1] = tensors[1].detach().to(dtype)  # keys carry no gradient
            operands.insert(2, keys.to(dtype).mT)
        return operands


_AMCL = {"tau_min": 0.05, "tau_max": 2.0, "beta": 1e-4}
_TOPK = _AMCL | {"negatives": "topk_mean", "top_k": 100}
_ALL = _AMCL | {"negatives": "softmax", "top_k": None}
_NT_XENT = {"tau_min": 0.5, "tau_max": 0.5, "beta": 0.0, "negatives": "softmax", "top_k": None}
_CONSTANT = {"tau_min": 0.1, "tau_max": 0.1, "beta": 0.0, "negatives": "topk_softmax", "top_k": 100}
_PERPLEXITY = _CONSTANT | {"tau_min": 0.01, "tau_max": 1.0, "perplexity": 0.25}
_BARLOW = _AMCL | {"lambd": 5e-3, "beta": 1e-6}
_WITH_CHUNKED = ("dense", "compiled", "chunked", PRODUCTS)

CASES = (
    Case(
        "SimCLR, N = 512", "contrast", 3, 1024, 0, 128, _TOPK,
        peers=("reference", *_WITH_CHUNKED), targets={"cpu": {"dense": 4, "compiled": 3, "products": 1}},
    ),
    Case(
        "SimCLR, N = 2048", "contrast", 3, 4096, 0, 128, _TOPK,
        peers=_WITH_CHUNKED, targets={"cpu": {"dense": 8, "products": 0.6, "memory": 20}},
    ),
    Case(
        "SimCLR, N = 4096", "contrast", 3, 8192, 0, 128, _TOPK,
        peers=_WITH_CHUNKED, targets={"cuda": {"products": 2, "dense": 10, "compiled": 5, "memory": 50}},
    ),
    Case(
        "SimCLR, N = 16,384", "contrast", 3, 32_768, 0, 128, _TOPK, peers=(), targets={"cpu": {"gib": 2}},
    ),
    Case(
        "SimCLR, N = 65,536", "contrast", 3, 131_072, 0, 128, _TOPK, peers=(PRODUCTS,),
        targets={"cuda": {"gib": 4}},
    ),
    Case(
        "SimCLR, N = 1024, softmax over all", "contrast", 3, 2048, 0, 128, _ALL, targets={"cpu": {"dense": 2}},
    ),
    Case(
        "SimCLR, N = 4096, softmax over all", "contrast", 3, 8192, 0, 128, _ALL, targets={"cuda": {}},
    ),
    Case(
        "SimCLR, N = 512, topk_softmax", "contrast", 3, 1024, 0, 128, _TOPK | {"negatives": "topk_softmax"},
        peers=("dense", PRODUCTS),
    ),
    Case(
        "SimCLR, N = 512, float64", "contrast", 3, 1024, 0, 128, _TOPK, peers=("dense", PRODUCTS), dtype="float64",
    ),
    Case(
        "SimCLR, N = 2048, constant τ", "contrast", 3, 4096, 0, 128, _CONSTANT, peers=("dense", PRODUCTS),
    ),
    Case(
        "SimCLR, N = 2048, perplexity", "contrast", 3, 4096, 0, 128, _PERPLEXITY, peers=(PRODUCTS,),
    ),
    Case(
        "NT-Xent, N = 1024, perplexity", "contrast", 3, 2048, 0, 128,
        _PERPLEXITY | {"negatives": "softmax", "top_k": None}, peers=(PRODUCTS,),
    ),
    Case(
        "NT-Xent, N = 1024", "contrast", 3, 2048, 0, 128, _NT_XENT, peers=("dense", PRODUCTS),
    ),
    Case("NT-Xent, N = 4096", "contrast", 3, 8192, 0, 128, _NT_XENT, targets={"cuda": {"compiled": 3}}),
    Case(
        "MoCo, N = 256, queue 65,536", "contrast", 3, 512, 65_536, 128, _TOPK, gradients=(True, False, True, True),
        peers=_WITH_CHUNKED, targets={"cpu": {"dense": 4}, "cuda": {"dense": 5}},
    ),
    Case(
        "Barlow Twins, d = 2048, N = 512", "decorrelate", 1, 2048, 0, 512, _BARLOW, targets={"cpu": {"dense": 2}},
    ),
    Case(
        "Barlow Twins, d = 8192, N = 1024", "decorrelate", 1, 8192, 0, 1024, _BARLOW,
        targets={"cuda": {"dense": 5, "memory": 50}},
    ),
    Case(
        "SimSiam, d = 2048, N = 4096", "align", 3, 4096, 0, 2048, _AMCL | {"weight": 0.5},
        gradients=(True, False, True, True), peers=("dense", "compiled"), targets={"cuda": {"bandwidth": 0.7}},
    ),
    Case(
        "SimSiam, d = 2048, N = 512", "align", 3, 512, 0, 2048, _AMCL | {"weight": 0.5},
        gradients=(True, False, True, True), peers=("dense", "compiled"),
    ),
    Case("Whole loss: AMCL-SimCLR, N = 512, InfoNCE", "simclr", 3, 1024, 0, 128, _ALL, peers=("dense",)),
    Case(
        "Whole loss: NT-Xent, N = 512, one head", "simclr", 1, 1024, 0, 128, _NT_XENT, peers=("dense",),
        targets={"cuda": {}},
    ),
    Case(
        "Whole loss: Barlow Twins, τ = 1, d = 2048, N = 512", "barlow", 1, 2048, 0, 512,
        {"tau_min": 1.0, "tau_max": 1.0, "beta": 0.0, "lambd": 5e-3}, peers=("dense",),
        targets={"cuda": {}},
    ),
    Case(
        "Whole loss: AMCL-MoCo, N = 256, queue 65,536", "moco", 3, 512, 65_536, 128, _TOPK, peers=("dense",),
        targets={"cpu": {}, "cuda": {}},
    ),
    Case(
        "SimCLR, N = 4096, one table", "contrast", 3, 8192, 0, 128, _TOPK, shared=True, targets={"cuda": {}},
    ),
    Case(
        "SimCLR, N = 4096, softmax over all, one table", "contrast", 3, 8192, 0, 128, _ALL, shared=True,
        targets={"cuda": {}},
    ),
    Case(
        "NT-Xent, N = 4096, one table", "contrast", 3, 8192, 0, 128, _NT_XENT, shared=True, targets={"cuda": {}},
    ),
    Case(
        "SimCLR, N = 4096, constant τ, one table", "contrast", 3, 8192, 0, 128, _CONSTANT, peers=(), shared=True,
        targets={"cuda": {}},
    ),
    Case(
        "SimCLR, N = 4096, perplexity, one table", "contrast", 3, 8192, 0, 128, _PERPLEXITY, peers=(), shared=True,
        targets={"cuda": {}},
    ),
    Case(
        "SimCLR, N = 4096, perplexity over all, one table", "contrast", 3, 8192, 0, 128,
        _PERPLEXITY | {"negatives": "softmax", "top_k": None}, peers=(), shared=True, targets={"cuda": {}},
    ),
    Case(
        "InfoNCE one way, N = 16,384, τ = 0.07", "infonce", 1, 16_384, 0, 128,
        {"tau_min": 0.07, "tau_max": 0.07}, peers=("dense", "compiled"), targets={"cuda": {}},
    ),
)  # fmt: skip


def named(name: str) -> Case:
    """The case of a name.

    Raises:
        ValueError: there is none.
    """
    for case in CASES:
        if case.name == name:
            return case
    raise ValueError(f"case must be the name of one of benchmarks.cases.CASES, got {name!r}")


def select(device: str, substring: str = "") -> list[Case]:
    """Cases for a kind of device, `cpu` or `cuda`, whose name contains `substring` (case ignored).

    Raises:
        ValueError: there is none; the message lists the names.
    """
    available = [case for case in CASES if case.fits(device)]
    chosen = [case for case in available if substring.lower() in case.name.lower()]
    if not chosen:
        names = "\n".join(f"  {case.name}" for case in available)
        raise ValueError(f"case must be part of one of these names, those for {device}, got {substring!r}:\n{names}")
    return chosen
