"""The exact cases, and a loss on one of them."""

import json
from pathlib import Path

import numpy as np
import torch

from amcl_fast import AdaptiveTemperature, BarlowTwinsLoss, MoCoLoss, SimCLRLoss, SimSiamLoss

CASES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
INPUTS = {
    "simclr": ("z1", "z2"),
    "moco": ("q", "k", "queue"),
    "simsiam": ("p1", "z2", "p2", "z1"),
    "barlow": ("z1", "z2"),
}


def build(config, temperature, backend):
    kind = config["loss"]
    if kind == "simclr":
        return SimCLRLoss(temperature, top_k=config["top_k"], beta=config["beta"], backend=backend)
    if kind == "moco":
        return MoCoLoss(temperature, top_k=config["top_k"], beta=config["beta"], backend=backend)
    if kind == "simsiam":
        return SimSiamLoss(temperature, beta=config["beta"], backend=backend)
    return BarlowTwinsLoss(temperature, lambd=config["lambd"], beta=config["beta"], backend=backend)


def run(path, dtype, backend, device="cpu"):
    """Loss and gradients of a case, {golden name: computed}, as float64 arrays."""
    case = np.load(path)
    config = json.loads(str(case["config"]))
    names = INPUTS[config["loss"]]
    width = case[names[0]].shape[0 if config["loss"] == "barlow" else -1]
    temperature = AdaptiveTemperature(width, config["hidden"], config["tau_min"], config["tau_max"]).to(device, dtype)
    weights = {k.replace("_", ".", 1): torch.from_numpy(case[k]) for k in case.files if k[0] in "02"}
    temperature.phi.load_state_dict(weights)
    inputs = [torch.from_numpy(case[name]).to(device, dtype) for name in names]
    for name, tensor in zip(names, inputs, strict=True):
        tensor.requires_grad_(f"g_{name}" in case.files)
    loss = build(config, temperature, backend)(*inputs)
    loss.backward()
    found = {"loss": loss}
    found |= {f"g_{name}": t.grad for name, t in zip(names, inputs, strict=True) if t.requires_grad}
    found |= {f"g_{k.replace('.', '_')}": p.grad for k, p in temperature.phi.named_parameters()}
    expected = {k for k in case.files if k.startswith("g_")} | {"loss"}
    assert found.keys() == expected
    return {k: v.detach().double().cpu().numpy() for k, v in found.items()}, case


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
