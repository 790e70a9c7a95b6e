"""What runs beside amcl_fast, a record each: other ways to write it in PyTorch, other libraries, the bare products."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from amcl_fast import ops

from . import dense
from .cases import PRODUCTS, Case, Operands, Run
from .ours import ours


class NotInstalled(Exception):
    """A peer's package is missing; the message says what installs it."""


def _no_more(case: Case, dtype: torch.dtype) -> float:
    return 0.0


def _of_pytorch(case: Case, dtype: torch.dtype) -> float:
    """PyTorch's products round s and r to half precision, which changes temperatures and the hardest negatives.

    torch.topk breaks ties as it likes, and the operands of the check have some.
    """
    return 0.5 if dtype.itemsize == 2 else 2e-2 if case.settings.get("top_k") is not None else 0.0


def _of_lightly(case: Case, dtype: torch.dtype) -> float:
    """It standardises by the biased variance: a difference of the order of one over the batch."""
    return 5 / case.width if case.operator == "barlow" and dtype.itemsize > 2 else _of_pytorch(case, dtype)


@dataclass(frozen=True)
class Peer:
    """All that the benchmarks know of one peer; one more in `PEERS` is checked, timed, drawn and in every table.

    Attributes:
        name: in `Case.peers`, in the JSON and in tables.
        about: what it is, for docs/benchmarks.md.
        colour: in plots.
        make: what runs a case, from its operands to the result. What it imports may be missing.
        takes: whether it can compute a case.
        joins: it runs beside every case that it takes; otherwise beside those that name it in `Case.peers`.
        allowance: relative error that is no mistake in it, for a case in a dtype, where the check's tolerance is less.
        install: what pip installs for it; empty: nothing.
        devices: kinds of device that it runs on.
        drawn: whether plots show how much faster ours is.
    """

    name: str
    about: str
    colour: str
    make: Callable[[Case], Run]
    takes: Callable[[Case], bool] = lambda case: True
    joins: bool = False
    allowance: Callable[[Case, torch.dtype], float] = _of_pytorch
    install: str = ""
    devices: tuple[str, ...] = ("cpu", "cuda")
    drawn: bool = True

    def run(self, case: Case) -> Run:
        """What runs a case that it takes.

        Raises:
            NotInstalled: its package is missing.
        """
        try:
            return self.make(case)
        except ImportError:
            if not self.install:
                raise
            raise NotInstalled(f"not installed: pip install {self.install}") from None


def _dense(case: Case) -> Run:
    return partial(dense.OPERATORS[case.operator], **case.settings)


def _compiled(case: Case) -> Run:
    torch.compiler.reset()
    return partial(torch.compile(dense.OPERATORS[case.operator], dynamic=False), **case.settings)


def _lightly(case: Case) -> Run:
    from lightly.loss import BarlowTwinsLoss, NTXentLoss

    if case.operator == "simclr":
        return NTXentLoss(case.settings["tau_min"])
    return BarlowTwinsLoss(case.settings["lambd"])


def _inf_cl(case: Case) -> Run:
    from inf_cl import cal_flash_loss

    return lambda x, y: cal_flash_loss(x, y, scale=1 / case.settings["tau_min"], head_dim=case.width).mean()


def _liger(case: Case) -> Run:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def run(x: Tensor, y: Tensor) -> Tensor:
        target = torch.arange(len(x), device=x.device)
        return liger_fused_linear_cross_entropy(x / case.settings["tau_min"], y, target)

    return run


def _is_one_way(case: Case) -> bool:
    return case.operator == "infonce"


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "dense",
            "the operator as one would write it in PyTorch: all similarities, `torch.topk`, τ of the chosen",
            "#c1440e",
            _dense,
        ),
        Peer("compiled", "the same through `torch.compile`", "#e0a030", _compiled),
        Peer(
            "chunked",
            "the same for 1024 anchors at a time, formed again in the backward pass",
            "#7a9e3f",
            lambda case: partial(dense.contrast_chunked, **case.settings),
            takes=lambda case: case.operator == "contrast",
        ),
        Peer(
            "reference",
            "`amcl_fast.reference`, with its exact rule for ties",
            "#a86bb0",
            partial(ours, "reference"),
            allowance=_no_more,
            drawn=False,  # an oracle, which nobody trains with
        ),
        Peer(
            "lightly",
            "`NTXentLoss` and `BarlowTwinsLoss` of lightly, for whole losses with a constant temperature",
            "#3aa6a0",
            _lightly,
            takes=lambda case: case.operator in ("simclr", "barlow") and not case.adaptive,
            joins=True,
            allowance=_of_lightly,
            install="'amcl-fast[bench]'",
        ),
        Peer(
            "inf_cl",
            "`cal_flash_loss` of Inf-CL (arXiv 2410.17243), for InfoNCE one way: float32 logits in tiles, products in "
            "tf32",
            "#8c564b",
            _inf_cl,
            takes=_is_one_way,
            joins=True,
            install="inf_cl",
            devices=("cuda",),
        ),
        Peer(
            "liger",
            "`liger_fused_linear_cross_entropy` of Liger, for the same: the candidates are the weights of the classes",
            "#d16ba5",
            _liger,
            takes=_is_one_way,
            joins=True,
            install="liger-kernel",
            devices=("cuda",),
        ),
    )
}
"""By name, in the order of tables."""


def peer_of(case: Case, name: str) -> Peer:
    """The peer of a name.

    Raises:
        ValueError: there is none that computes the operator of `case`.
    """
    if name in PEERS and PEERS[name].takes(case):
        return PEERS[name]
    names = ", ".join(peer.name for peer in PEERS.values() if peer.takes(case))
    raise ValueError(f"peer must be one of {names} for {case.operator}, got {name!r}")


def beside(case: Case, device: str) -> list[Peer]:
    """The peers that run beside a case on a kind of device, `cpu` or `cuda`.

    Raises:
        ValueError: the case names one that is none of this operator.
    """
    for name in case.peers:
        if name != PRODUCTS:
            peer_of(case, name)
    joined = [peer for peer in PEERS.values() if peer.name in case.peers or (peer.joins and peer.takes(case))]
    return [peer for peer in joined if device in peer.devices]


def implementation(name: str, case: Case) -> Run:
    """The operator or loss of `case`, from its operands to a tensor, by a backend of amcl_fast or by a peer.

    Raises:
        NotInstalled: a peer's package is missing.
        ValueError: there is no such peer of this operator.
    """
    if name in ops.BACKENDS:
        return ours(name, case)
    return peer_of(case, name).run(case)


def allowance(name: str, case: Case, dtype: torch.dtype) -> float:
    """Relative error that is no mistake in an implementation: 0 for the backends of amcl_fast."""
    return 0.0 if name in ops.BACKENDS else PEERS[name].allowance(case, dtype)


# Bytes of s that the bare products may hold.
_MOST_BYTES = 8 << 30


def products(case: Case, operands: Operands, rows_at_once: int | None = None) -> Callable[[], None]:
    """The matrix products of a dense forward and backward pass, alone: s, r, and the gradients that the case has.

    `rows_at_once`: for that many anchors at a time; None: for all, or 4,096 where rows × candidates is too much.
    """
    tables = [(t.detach(), t.requires_grad) for t in operands[:4] if t is not None]
    pairs = list(zip(tables[::2], tables[1::2], strict=True))
    x = pairs[0][0][0]
    fits = case.heads * case.rows * case.columns * x.itemsize <= _MOST_BYTES
    at_once = rows_at_once or (x.shape[1] if fits else 4096)

    def run() -> None:
        for (x, by_x), (y, by_y) in pairs:
            for part in x.split(at_once, dim=1):
                matrix = part @ y.mT
                if by_x:
                    _ = matrix @ y
                if by_y:
                    _ = matrix.mT @ part

    return run
