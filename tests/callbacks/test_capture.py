"""amcl_fast.callbacks.capture against a pair-by-pair transcription, and that looking changes nothing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from amcl_fast import AdaptiveTemperature, LearnedTemperature, PerplexityTemperature, SimCLRLoss
from amcl_fast.callbacks.capture import principal_components
from amcl_fast.evaluate import encode
from amcl_fast.report import Snapshot, capture
from tests.helpers.fake_data import SIZE, FakeDataModule
from tests.helpers.running import method
from tests.helpers.shots import snapshot
from tests.helpers.toy_methods import method as toy_method


class Data(FakeDataModule):
    """Gives a new reader whenever it is asked, as the real one does."""

    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)

    def train_dataloader(self):
        return type(self.loader)(self.loader.steps, self.loader.batch)


def projections(module, batches=1):
    """(C, 2n, d) per batch, as training computes them, on a copy of the module's statistics."""
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train()
    with torch.no_grad():
        z = [module.embed(torch.cat(views)) for (views, _), _ in zip(Data().loader, range(batches), strict=False)]
    module.load_state_dict(kept, strict=False)
    return [F.normalize(part.transpose(0, 1), dim=-1) for part in z]


def test_positives_and_temperatures_are_those_of_the_pairs():
    module = method()
    found = capture(module, Data(), pairs=16)
    (one, two), phi = projections(module, 2), module.criterion.adaptive
    for head in range(2):
        similarity, tau = [], []
        for z in (one[head], two[head]):
            for i in range(8):
                similarity.append((z[i] @ z[i + 8]).item())
                p, q = phi.phi(z[i]), phi.phi(z[i + 8])
                r = 4.0 * (F.cosine_similarity(p, q, dim=0) - phi.offset).item()
                tau.append(0.1 + 0.9 / (1 + math.exp(r)))
        np.testing.assert_allclose(found.positive_similarity[head], similarity, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.positive_tau[head], tau, rtol=1e-4)


def test_a_learned_temperature_is_one_number_of_its_range():
    module = method()
    module.criterion = SimCLRLoss(LearnedTemperature(0.3), negatives="softmax")
    found = capture(module, Data(), pairs=8)
    np.testing.assert_allclose([*found.positive_tau.flat, *found.random_tau.flat], 0.3, rtol=1e-6)
    assert (found.tau_min, found.tau_max, found.constant_tau) == (0.01, 10.0, False)
    assert not found.per_anchor and not found.pinned


@pytest.mark.parametrize("kind", ["perplexity", "row"])
def test_anchors_have_one_temperature_each_of_their_negatives(kind):
    module = method()
    pinned = kind == "perplexity"
    of = PerplexityTemperature(0.2, 0.5, 0.001, 9.0) if pinned else AdaptiveTemperature(6, 4, 0.1, 1.0, share="row")
    module.criterion = SimCLRLoss(of, negatives="topk_softmax", top_k=4)
    found = capture(module, Data(), pairs=8)
    assert (found.per_anchor, found.pinned, found.one_tau, found.constant_tau) == (True, pinned, False, False)
    assert np.isin(found.hardest_tau, found.positive_tau).all() and np.isin(found.random_tau, found.positive_tau).all()
    (z,) = projections(module)
    for head in range(2):
        for i in range(8):
            others = [(z[head, i] @ z[head, j]).item() for j in range(16) if j not in (i, i + 8)]
            weights = [math.exp(s / found.positive_tau[head, i]) for s in sorted(others)[-4:]]
            shares = [weight / sum(weights) for weight in weights]
            expected = math.exp(-sum(p * math.log(p) for p in shares)) / 4
            assert found.perplexity[head, i] == pytest.approx(expected, rel=1e-3)


def test_a_loss_without_negatives_has_no_perplexity():
    found = capture(toy_method("simsiam"), Data(), pairs=8)
    assert found.perplexity.size == 0 and found.agreement.shape == (2, 2)


def test_agreement_is_the_correlation_of_similarities():
    shot = snapshot(heads=3)
    np.testing.assert_allclose(shot.agreement, np.corrcoef(shot.random_similarity), rtol=1e-9)
    flat = shot.random_similarity.copy()
    flat[1] = 0.5
    found = snapshot(heads=3, random_similarity=flat).agreement
    assert found[1].tolist() == [0, 0, 0] and found[0, 0] == pytest.approx(1)


def test_hardest_negatives_are_the_most_similar_and_never_self_or_positive():
    module = method()
    found = capture(module, Data(), pairs=8)
    (z,) = projections(module)
    for head in range(2):
        s = (z[head] @ z[head].T).double()
        allowed, hardest = set(), set()
        for i in range(8):
            others = sorted((s[i, j].item() for j in range(16) if j not in (i, i + 8)), reverse=True)
            allowed.update(others)
            hardest.update(others[:4])

        def drawn_from(values, pool):
            pool = np.array(sorted(pool))
            return all(abs(pool - value).min() < 1e-5 for value in values)

        assert drawn_from(np.unique(found.hardest_similarity[head]), hardest)
        assert drawn_from(np.unique(found.random_similarity[head]), allowed)
        assert len(np.unique(found.random_similarity[head].round(6))) > 4 * 8


def test_the_same_negatives_in_every_head():
    """A temperature belongs to its similarity: with an untrained φ of zeros, τ is constant, s is not."""
    module = method()
    torch.nn.init.zeros_(module.criterion.adaptive.phi[2].weight)
    torch.nn.init.zeros_(module.criterion.adaptive.phi[2].bias)
    found = capture(module, Data(), pairs=8)
    np.testing.assert_allclose(found.random_tau, 0.55, rtol=1e-5)
    assert found.random_similarity.std() > 0.01


@pytest.mark.parametrize(
    ("settings", "top_k"), [({"negatives": "softmax"}, 0), ({"negatives": "topk_mean", "top_k": 3}, 3)]
)
def test_constant_temperature(settings, top_k):
    found = capture(method(criterion=SimCLRLoss(0.3, backend="reference", **settings)), Data(), pairs=8)
    assert found.constant_tau and found.tau_min == 0.3
    assert found.top_k == top_k
    np.testing.assert_allclose(found.positive_tau, 0.3, rtol=1e-6)


def test_embedding_shows_the_principal_axes():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 7, generator=generator) * torch.tensor([9.0, 5, 1, 1, 1, 1, 1]) + 2
    places, shares = principal_components(features)
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    values, axes = np.linalg.eigh(np.cov(unit.T))
    expected = (unit - unit.mean(0)) @ axes[:, [-1, -2]]
    np.testing.assert_allclose(abs(places.numpy()), abs(expected), atol=1e-5)
    np.testing.assert_allclose(shares, values[[-1, -2]] / values.sum(), rtol=1e-4)
    mirrored, _ = principal_components(features.flip(0))
    np.testing.assert_allclose(mirrored.flip(0), places, atol=1e-5)  # signs are not left to chance


@pytest.mark.parametrize("shape", [(1, 5), (4, 1)])
def test_an_embedding_of_too_little_is_flat(shape):
    places, shares = principal_components(torch.ones(shape))
    assert places.shape == (shape[0], 2) and not places.any() and not shares[1]


def test_embedding_is_of_the_held_out_images():
    module = method()
    found = capture(module, Data(), pairs=8)
    features, labels = encode(module.backbone, Data().features_loaders()[1], "cpu")
    np.testing.assert_allclose(found.embedding, principal_components(features)[0], atol=1e-6)
    assert found.labels.tolist() == labels.tolist() and found.classes.tolist() == ["a", "b"]


def test_looking_changes_nothing():
    module, data = method(), Data()
    module.eval()
    module.projector.train()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    capture(module, data, pairs=8)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert (module.training, module.backbone.training, module.projector.training) == (False, False, True)
    assert (data.loader.epoch, data.loader.step) == (0, 0)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_same_pairs_every_time():
    module = method()
    first, second = capture(module, Data(), pairs=8), capture(module, Data(), pairs=8)
    assert np.array_equal(first.hardest_tau, second.hardest_tau)
    assert np.array_equal(first.views, second.views)


def test_half_precision_training_is_looked_at_in_full():
    with torch.autocast("cpu", torch.bfloat16):
        found = capture(method(), Data(), pairs=8)
    assert len(np.unique(found.random_similarity)) > 0.5 * 2 * 8 * 14  # bfloat16 has few numbers near 1


def test_pictures_are_the_views_before_normalisation():
    found = capture(method(), Data(), pairs=8)
    (views, _) = next(iter(Data().loader))
    assert found.views.shape == (2, 8, SIZE, SIZE, 3)
    expected = views[1][3, 2] * 0.1 + 0.3  # third channel
    np.testing.assert_allclose(found.views[1, 3, ..., 2] / 255, expected.clamp(0, 1), atol=0.003)


@pytest.mark.parametrize(("pairs", "taken"), [(1, 8), (8, 8), (9, 16), (1000, 32)])
def test_pairs_come_in_whole_batches(pairs, taken):
    assert capture(method(), Data(), pairs=pairs).positive_tau.shape == (2, taken)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs"):
        capture(method(), Data(), pairs=0)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "before.npz"
    snapshot(step=1).save(path)

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        snapshot(step=2).save(path)
    assert Snapshot.load(path).step == 1


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", step=1)
    with pytest.raises(ValueError, match=r"other\.npz is damaged: it has no framework"):
        Snapshot.load(tmp_path / "other.npz")


def test_pictures_of_views_of_two_sizes_are_equally_large():
    class Sizes(Data):
        """The second view at half of its size."""

        def train_dataloader(self):
            return [([first, second[..., ::2, ::2]], labels) for (first, second), labels in super().train_dataloader()]

    module = method()
    whole, found = capture(module, Data(), pairs=8).views, capture(module, Sizes(), pairs=8).views
    assert np.array_equal(found[1], whole[0])  # to which the smaller one attends
    assert np.array_equal(found[0], whole[1][:, ::2, ::2].repeat(2, axis=1).repeat(2, axis=2))


def test_a_snapshot_of_an_earlier_version_has_no_pictures(tmp_path):
    made = {"pictures": np.ones((2, 3, 8, 8, 3), np.uint8), "picture_names": np.array(["seen", "noise"])}
    made |= {"map": np.ones((12, 2), np.float32), "map_name": "t-SNE"}
    made |= {"perplexity": np.full((2, 16), 0.5, np.float32), "per_anchor": True, "pinned": True}
    path = tmp_path / "before.npz"
    snapshot(**made).save(path)
    new = Snapshot.load(path)
    assert np.array_equal(new.pictures, made["pictures"]) and np.array_equal(new.perplexity, made["perplexity"])
    assert new.per_anchor is True and new.pinned is True
    with np.load(path) as file:
        np.savez(path, **{name: file[name] for name in file.files if name not in made})
    old = Snapshot.load(path)
    assert old.map.shape == (0, 2) and old.map_name == ""
    assert old.perplexity.shape == (0, 0) and not old.per_anchor and not old.pinned
    assert old.pictures.shape[0] == len(old.picture_names) == 0 and old.views.shape == (2, 3, 8, 8, 3)
