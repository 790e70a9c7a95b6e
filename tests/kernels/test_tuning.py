import json
import warnings

import pytest
import torch

from amcl_fast.kernels import tuning
from amcl_fast.kernels.tile import similarity_tiling

X = torch.zeros(1)


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A device with a file of its own."""
    name = "NVIDIA Test (1) 80GB"
    tables = {"select.similarities": {"bfloat16": {"num_warps": 4}}}
    (tmp_path / "nvidia-test-1-80gb.json").write_text(json.dumps({"device": name, "tables": tables}))
    monkeypatch.setattr(tuning, "path_of", lambda device, of=tuning.path_of: of(device, tmp_path))
    monkeypatch.setattr(tuning, "device_name", lambda x: name)
    tuning.winners.cache_clear()
    yield name
    tuning.winners.cache_clear()


def test_winners_come_before_the_default(device):
    default = {"num_warps": 8, "M": 64}
    assert tuning.chosen("select.similarities", "bfloat16", default, X) == {"num_warps": 4, "M": 64}
    assert tuning.chosen("select.similarities", "float32", default, X) == default
    assert tuning.chosen("dense.forward", "bfloat16", default, X) == default
    assert default == {"num_warps": 8, "M": 64}


def test_an_unknown_device_has_the_default(device, monkeypatch):
    for name in ("", "NVIDIA Other"):
        monkeypatch.setattr(tuning, "device_name", lambda x, name=name: name)
        assert tuning.chosen("select.similarities", "bfloat16", {"num_warps": 8}, X) == {"num_warps": 8}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"device": "NVI', "must be a JSON of tuned tables, got none: Unterminated string"),
        (b"\xff\xfe", "must be a JSON of tuned tables, got none: 'utf-8' codec"),
        (b"[1]", 'must hold "tables" of parameters by key, got null'),
        (b'{"tables": {"select.similarities": 4}}', 'must hold "tables" of parameters by key, got {"select'),
        (b'{"tables": {"select.similarities": {"bfloat16": 4}}}', 'must hold "tables" of parameters by key, got'),
        (b'{"tables": {"a.b": {"bfloat16": {"num_warps": "4"}}}}', 'must hold "tables" of whole numbers by parameter'),
        (None, "must be a regular file"),
    ],
)
def test_a_damaged_file_is_told_once_and_breaks_nothing(device, content, reason):
    path = tuning.path_of(device)
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    default = {"num_warps": 8}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            assert tuning.chosen("select.similarities", "bfloat16", default, X) == default
    (one,) = told
    message = str(one.message)
    assert str(path) in message and reason in message and "\n" not in message


def test_what_is_tried_comes_before_the_winners(device):
    with tuning.trying("select.similarities", {"M": 128}) as keys:
        assert tuning.chosen("select.similarities", "bfloat16", {"num_warps": 8}, X) == {"num_warps": 8, "M": 128}
        assert tuning.chosen("select.similarities", "float32", {"num_warps": 8}, X) == {"num_warps": 8, "M": 128}
        assert tuning.chosen("select.similarities", "float32", {"num_warps": 8}, X)["M"] == 128
        assert tuning.chosen("dense.forward", "bfloat16", {"num_warps": 8}, X) == {"num_warps": 8}
    assert keys == ["bfloat16", "float32"]
    assert tuning.chosen("select.similarities", "bfloat16", {"num_warps": 8}, X) == {"num_warps": 4}


def test_the_example_is_a_key_that_is_asked_for():
    with tuning.trying("select.similarities", {}) as keys:
        similarity_tiling(torch.empty(1, 2**14, 128, dtype=torch.bfloat16, device="meta"), 128)
    assert keys == ["bfloat16 d≤128 full"]
    assert f'{{"select.similarities": {{"{keys[0]}": ' in tuning.__doc__ and keys[0] in tuning.key.__doc__


@pytest.mark.parametrize("path", sorted(tuning.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_files_are_of_their_devices(path):
    found = json.loads(path.read_text())
    assert tuning.path_of(found["device"]) == path
    assert len(found["capability"]) == 2 and found["commit"] and found["date"]
    for table, keys in found["tables"].items():
        assert "." in table and keys
        assert all(isinstance(value, int) for winner in keys.values() for value in winner.values())
