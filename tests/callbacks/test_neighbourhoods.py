"""Maps of features by what is installed, here by stand-ins that keep what they are asked."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest
import torch

from amcl_fast.callbacks import neighbourhoods as module
from tests.helpers import others


@pytest.fixture
def install(monkeypatch):
    """Make a package that places everything at its first two features."""
    monkeypatch.setattr(module, "find_spec", lambda name: sys.modules.get(name))
    for name in ("umap", "sklearn"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    asked = {}

    def installed(package, name, kind, error=None):
        class Places:
            def __init__(self, **settings):
                asked[kind] = settings

            def fit_transform(self, unit):
                if error:
                    raise error
                np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
                return unit[:, :2].astype(np.float64)

        for part in {package, name}:
            found = types.ModuleType(part)
            found.__spec__ = importlib.machinery.ModuleSpec(part, None)
            monkeypatch.setitem(sys.modules, part, found)
        setattr(sys.modules[name], kind, Places)

    installed.asked = asked
    return installed


def test_the_first_that_is_installed_places_them_with_a_seed(install):
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    assert module.neighbourhoods(features) is module.NO_MAP
    install("sklearn", "sklearn.manifold", "TSNE")
    places, name = module.neighbourhoods(features)
    assert name == "t-SNE" and places.dtype == np.float32
    np.testing.assert_allclose(places, torch.nn.functional.normalize(features)[:, :2])
    assert install.asked["TSNE"]["random_state"] == 0 and install.asked["TSNE"]["perplexity"] < 12
    install("umap", "umap", "UMAP")
    assert module.neighbourhoods(features)[1] == "UMAP" and install.asked["UMAP"]["random_state"] == 0
    assert module.neighbourhoods(features[:5]) is module.NO_MAP


def test_what_one_fails_of_is_a_warning(install):
    install("umap", "umap", "UMAP", RuntimeError("numba is too old"))
    install("sklearn", "sklearn.manifold", "TSNE")
    with pytest.warns(UserWarning, match="no map of features by UMAP: numba is too old"):
        assert module.neighbourhoods(torch.randn(12, 5))[1] == "t-SNE"


def test_tsne_keeps_neighbours_together_and_gives_the_same_again(monkeypatch):
    others.need(monkeypatch, "sklearn")
    draw = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(3, 8, generator=draw)
    groups = torch.arange(60) % 3
    features = centres[groups] + torch.randn(60, 8, generator=draw)
    places, _ = module.neighbourhoods(features)
    again, _ = module.neighbourhoods(features)
    assert np.array_equal(places, again)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(60) * 1e9
    assert (groups[apart.argmin(1)] == groups).all()
