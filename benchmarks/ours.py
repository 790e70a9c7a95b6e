"""The operators and losses of amcl_fast, for what a case holds."""

import torch
from torch import Tensor, nn

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, ops

from .cases import LOSSES, PHI, Case, Run


def ours(backend: str, case: Case) -> Run:
    """The operator or loss of `case`, from its operands to a tensor, by a backend of amcl_fast."""
    if case.operator in LOSSES:
        return _loss(backend, case)
    if "perplexity" in case.settings:
        return _of_perplexity(backend, case)
    operator = getattr(ops, case.operator)
    return lambda *operands: operator(*operands, backend=backend, **case.settings)[0]


def module_of(backend: str, case: Case) -> nn.Module:
    """The loss of a case of `LOSSES` as its users have it, with φ of its own."""
    settings = {key: value for key, value in case.settings.items() if not key.startswith("tau")} | {"backend": backend}
    ranges = {"tau_min": case.settings["tau_min"], "tau_max": case.settings["tau_max"]}
    if "precision" in settings:
        ranges["precision"] = settings.pop("precision")
    temperature = AdaptiveTemperature(case.width, **ranges) if case.adaptive else ranges["tau_min"]
    if case.operator == "simclr":
        return SimCLRLoss(temperature, include_positive=True, **settings)
    return {"moco": MoCoLoss, "barlow": BarlowTwinsLoss}[case.operator](temperature, **settings)


def _of_perplexity(backend: str, case: Case) -> Run:
    """The contrast whose anchors have the temperature at which their negatives have a perplexity."""
    settings = {key: value for key, value in case.settings.items() if key != "perplexity"} | {"backend": backend}
    of_calibration = {key: value for key, value in settings.items() if key != "beta"}

    def run(*operands: Tensor) -> Tensor:
        tables = operands[0], operands[1], operands[5]
        tau, chosen = ops.calibrate(*tables, perplexity=case.settings["perplexity"], **of_calibration)
        return ops.contrast(*operands, tau=tau, chosen=chosen, **settings)[0]

    return run


def _loss(backend: str, case: Case) -> Run:
    if case.operator == "infonce":
        tau = case.settings["tau_min"]

        def one_way(x: Tensor, y: Tensor) -> Tensor:
            settings = {"tau_min": tau, "tau_max": tau, "negatives": "softmax", "top_k": None, "beta": 0.0}
            rows, _ = ops.contrast(x[None], y[None], None, None, None, None, backend=backend, **settings)
            # float64 in float64, and float32 for halves.
            own = (x * y if x.dtype == torch.float64 else x.float() * y.float()).sum(-1)
            return (rows[0] - own / tau).mean()

        return one_way
    module = module_of(backend, case)
    names = [f"temperature.phi.{name}" for name in PHI]
    inputs = 3 if case.operator == "moco" else 2

    def run(*operands: Tensor) -> Tensor:
        # φ's weights are operands, so that every implementation is asked for the same gradients.
        phi = dict(zip(names, operands[inputs:], strict=False))
        return torch.func.functional_call(module, phi, operands[:inputs])

    return run
