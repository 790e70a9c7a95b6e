"""Losses of any number of views as a loop over ordered pairs of them, in float64, by torch's autograd.

The formulas are those of docs/losses.md, written for one pair, one head, and the pair's direction; nothing of
amcl_fast is called. Views are (N, C, d).
"""

import torch

from tests.helpers.literal import calibrated


def unit(z):
    return z / z.norm(dim=-1, keepdim=True)


def omega(tau, d):
    return d / 2 * tau.log() + 1 / tau


def tau_of(temperature):
    """Rows (..., A, w) and (..., B, w) → τ (..., A, B), of a float or by the weights of an AdaptiveTemperature."""
    if isinstance(temperature, float):
        return lambda x, y: torch.full_like(x @ y.mT, temperature)
    w1, b1, w2, b2 = temperature.phi.parameters()

    def phi(x):
        return (x @ w1.T + b1).clamp(min=0) @ w2.T + b2

    def tau(x, y):
        u, v = phi(x), phi(y)
        r = u @ v.mT
        if temperature.score == "cosine":
            r = temperature.scale * (unit(u) @ unit(v).mT - temperature.offset)
        return temperature.tau_min + (temperature.tau_max - temperature.tau_min) / (1 + r.exp())

    return tau


def _anchors(anchor, positive, negatives, tau, form, top_k, beta, include_positive):
    """Mean over anchors (A, d) with their positives (A, d) and each with its own negatives (A, M, d)."""
    d = anchor.shape[1]
    t_p = tau(anchor[:, None], positive[:, None])[:, 0, 0]
    logit = (anchor * positive).sum(1) / t_p - beta * omega(t_p, d)
    s, t = (anchor[:, None] @ negatives.mT)[:, 0], tau(anchor[:, None], negatives)[:, 0]
    if form != "softmax":
        chosen = s.detach().topk(top_k, dim=1).indices
        s, t = s.gather(1, chosen), t.gather(1, chosen)
    if form == "topk_mean":
        return (-logit + (s / t).mean(1) - beta * (t.log() + 1 / t).sum(1)).mean()
    logits = s / t - beta * omega(t, d)
    logits = torch.cat([logits, logit[:, None]], dim=1) if include_positive else logits
    return (-logit + logits.logsumexp(1)).mean()


def simclr(q, t, tau, **settings):
    """ℓ(q → t): anchors are q's rows, negatives the other images' rows of both views."""
    total = 0
    for x, y in zip(unit(q).unbind(1), unit(t).unbind(1), strict=True):
        n = len(x)
        negatives = torch.stack([torch.cat([x[:i], x[i + 1 :], y[:i], y[i + 1 :]]) for i in range(n)])
        total = total + _anchors(x, y, negatives, tau, **settings)
    return total


def moco(q, k, queue, tau, **settings):
    """Queries of one view and keys of another, both anchors, against queue (C, d, K)."""
    total = 0
    for x, y, keys in zip(unit(q).unbind(1), unit(k).detach().unbind(1), queue.detach(), strict=True):
        for a, p in ((x, y), (y, x)):
            total = total + _anchors(a, p, keys.T.expand(len(a), -1, -1), tau, **settings) / 2
    return total


def simsiam(p, z, tau, beta):
    """Predictions of one view, projections of another."""
    total = 0
    for x, y in zip(unit(p).unbind(1), unit(z).detach().unbind(1), strict=True):
        t = tau(x[:, None], y[:, None])[:, 0, 0]
        total = total + (-(x * y).sum(1) / t + 2 * beta * omega(t, x.shape[1])).mean()
    return total


def barlow(z1, z2, tau, lambd, beta):
    """A pair, which has no direction."""
    total = 0
    for x, y in zip(z1.unbind(1), z2.unbind(1), strict=True):
        n, d = x.shape
        u, v = ((z - z.mean(0)) / (z.std(0) + 1e-9) for z in (x, y))
        correlation, t = u.T @ v / n, tau(x.T, y.T)
        on = torch.eye(d, dtype=torch.bool)
        total = total + ((1 - correlation / t)[on] ** 2 + beta * omega(t[on], d)).sum()
        total = total + (lambd * correlation[~on] ** 2 / t[~on] - beta * omega(t[~on], d)).sum()
    return total


def over_pairs(loss, views, targets, others=None):
    """Mean of loss(view q, other t) over the pairs of a view q and a target t ≠ q; `others` None are the views."""
    others = views if others is None else others
    terms = [loss(views[q], others[t]) for t in targets for q in range(len(views)) if q != t]
    return torch.stack(terms).mean()


def anchors_of(views, targets, keys=None, queue=None):
    """(anchor, positive, negatives (M, d)) of every pair of views and head, a list for each head.

    With keys, by target, and a queue they are MoCo's, of queries and of keys; else SimCLR's.
    """
    heads = [[] for _ in range(views[0].shape[1])]
    for q, t in ((q, t) for t in targets for q in range(len(views)) if q != t):
        for c, found in enumerate(heads):
            x, y = unit(views[q][:, c]), unit(views[t][:, c] if keys is None else keys[t][:, c].detach())
            for i in range(len(x)):
                if keys is None:
                    found.append((x[i], y[i], torch.cat([x[:i], x[i + 1 :], y[:i], y[i + 1 :]])))
                else:
                    found += [(a, p, queue[c].detach().T) for a, p in ((x[i], y[i]), (y[i], x[i]))]
    return heads


def hardest(anchor, negatives, form, top_k):
    s = negatives @ anchor
    return s if form == "softmax" else s[s.detach().argsort(descending=True, stable=True)[:top_k]]


def taus_of(temperature, anchors, mean, form, top_k):
    """τ of each anchor of one head: of a given perplexity, with 1/mean the mean of 1/τ, or φ's."""
    if mean is None:
        w1, b1, w2, b2 = temperature.phi.parameters()
        r = [(w2 @ (w1 @ a + b1).clamp(min=0) + b2)[0] for a, *_ in anchors]
        return [temperature.tau_min + (temperature.tau_max - temperature.tau_min) / (1 + of.exp()) for of in r]
    ends = temperature.tau_min, temperature.tau_max
    chosen = [hardest(a, negatives, form, top_k).tolist() for a, _, negatives in anchors]
    raw = [calibrated(of, temperature.perplexity, *ends) for of in chosen]
    level = sum(1 / of for of in raw) / len(raw)
    return [torch.tensor(of * mean * level, dtype=torch.float64) for of in raw]


def anchored(temperature, heads, form, top_k, include_positive, beta):
    """Loss of anchors that have one τ each, of `anchors_of`; β and ρ where φ gives it."""
    given = getattr(temperature, "mean", None)
    means = given if isinstance(given, list) else [given] * len(heads)
    total = 0
    for anchors, mean in zip(heads, means, strict=True):
        taus = taus_of(temperature, anchors, mean, form, top_k)
        terms = []
        for (a, p, negatives), tau in zip(anchors, taus, strict=True):
            s, s_p = hardest(a, negatives, form, top_k), a @ p
            if getattr(temperature, "objective", None) == "dro":
                terms.append(tau * (((s - s_p) / tau).exp().sum() / len(s)).log() + temperature.rho * tau)
            elif form == "topk_mean":
                regulariser = omega(tau, len(a)) - len(s) * (tau.log() + 1 / tau)
                terms.append((s.mean() - s_p) / tau + (beta * regulariser if mean is None else 0))
            else:
                logits = torch.cat([s, s_p[None]]) / tau if include_positive else s / tau
                terms.append(logits.logsumexp(0) - s_p / tau)
        total = total + torch.stack(terms).mean()
    return total
