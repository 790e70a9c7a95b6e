"""SPEC formulas pair by pair, in Python loops over float64 numbers: an oracle that shares no code with amcl_fast.

Shapes are (N, C, d) NumPy arrays. `tau` is a function of two rows that `unit` has normalised.
"""

import math

import numpy as np


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def omega(tau, d):
    return d / 2 * math.log(tau) + 1 / tau


def adaptive_tau(temperature):
    """τ of two rows under the weights of an AdaptiveTemperature."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in temperature.phi.parameters())

    def phi(x):
        return w2 @ np.maximum(w1 @ x + b1, 0) + b2

    def tau(x, y):
        u, v = phi(x), phi(y)
        if temperature.score == "dot":
            r = u @ v
        else:
            cosine = u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
            r = temperature.scale * (cosine - temperature.offset.item())
        return temperature.tau_min + (temperature.tau_max - temperature.tau_min) / (1 + math.exp(r))

    return tau


def anchor_term(a, p, negatives, tau, form, top_k, beta, include_positive):
    """One anchor of one head: its positive p and its list of negatives."""
    d = len(a)
    t_p = tau(a, p)
    positive = -(a @ p) / t_p + beta * omega(t_p, d)
    ranked = sorted(range(len(negatives)), key=lambda j: (-(a @ negatives[j]), j))
    chosen = [negatives[j] for j in (ranked if form == "softmax" else ranked[:top_k])]
    pairs = [(a @ n, tau(a, n)) for n in chosen]
    if form == "topk_mean":
        mean = sum(s / t for s, t in pairs) / len(pairs)
        return positive + mean - beta * sum(math.log(t) + 1 / t for _, t in pairs)
    if include_positive:
        pairs.append((a @ p, t_p))
    logits = [s / t - beta * omega(t, d) for s, t in pairs]
    top = max(logits)
    return positive + top + math.log(sum(math.exp(x - top) for x in logits))


def simclr(z1, z2, tau, form, top_k, beta, include_positive):
    n, heads, _ = z1.shape
    total = 0.0
    for c in range(heads):
        z = np.concatenate([unit(z1[:, c]), unit(z2[:, c])])
        for i in range(2 * n):
            partner = (i + n) % (2 * n)
            negatives = [z[j] for j in range(2 * n) if j not in (i, partner)]
            total += anchor_term(z[i], z[partner], negatives, tau, form, top_k, beta, include_positive)
    return total / (2 * n)


def moco(q, k, queue, tau, form, top_k, beta, include_positive):
    n, heads, _ = q.shape
    total = 0.0
    for c in range(heads):
        x, y, negatives = unit(q[:, c]), unit(k[:, c]), list(queue[c].T)
        for i in range(n):
            for a, p in ((x[i], y[i]), (y[i], x[i])):
                total += anchor_term(a, p, negatives, tau, form, top_k, beta, include_positive) / 2
    return total / n


def simsiam(p1, z2, p2, z1, tau, beta):
    n, heads, d = p1.shape
    total = 0.0
    for c in range(heads):
        for p, z in ((p1, z2), (p2, z1)):
            for i in range(n):
                x, y = unit(p[i, c]), unit(z[i, c])
                t = tau(x, y)
                total += -0.5 * (x @ y) / t + beta * omega(t, d)
    return total / n


def barlow(z1, z2, tau, lambd, beta):
    n, heads, d = z1.shape
    total = 0.0
    for c in range(heads):
        x, y = ((z[:, c] - z[:, c].mean(0)) / z[:, c].std(0, ddof=1) for z in (z1, z2))
        for l in range(d):
            for m in range(d):
                correlation = x[:, l] @ y[:, m] / n
                t = tau(z1[:, c, l], z2[:, c, m])
                if l == m:
                    total += (1 - correlation / t) ** 2 + beta * omega(t, d)
                else:
                    total += lambd * correlation**2 / t - beta * omega(t, d)
    return total


def perplexity(similarities, tau):
    """exp of the entropy of the softmax of numbers divided by τ."""
    top = max(similarities)
    weights = [math.exp((s - top) / tau) for s in similarities]
    shares = [weight / sum(weights) for weight in weights]
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0))


def calibrated(similarities, share, low, high):
    """τ from low to high at which their perplexity is a share of their number, or 1 if that is less."""
    wanted = max(1.0, share * len(similarities))
    if perplexity(similarities, low) >= wanted:
        return low
    if perplexity(similarities, high) <= wanted:
        return high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if perplexity(similarities, middle) < wanted else (low, middle)
    return (low + high) / 2
