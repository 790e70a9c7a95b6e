"""amcl_fast.evaluate.evaluate: any module on any loaders, left as it was."""

import json

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from amcl_fast.evaluate import EncodedBatches, ShuffledFeatures, encode, evaluate, knn_accuracy, linear_probe


def images(count, seed):
    """A data set of two classes of small images that differ in brightness."""
    labels = torch.arange(count) % 2
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(noise + 2 * labels[:, None, None, None], labels)


def backbone():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_get_the_type_of_the_weights(dtype):
    module, loader = backbone(), DataLoader(images(30, 0), 8)
    expected, _ = encode(module, loader, "cpu")
    found, _ = encode(module.to(dtype), loader, "cpu")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-1, atol=1e-4 if dtype == torch.float64 else 5e-2)


def test_features_beyond_half_precision_are_refused_where_they_are_kept():
    loader = DataLoader(images(20, 0), 8)
    large = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 4, bias=False))
    torch.nn.init.constant_(large[1].weight, 3000.0)
    taken = []

    def counted():
        for batch in loader:
            taken.append(len(batch))
            yield batch

    with pytest.raises(ValueError, match=r"features reach \d+,\d+, and float16 ends at 65,504: .* without --half"):
        encode(large, counted(), "cpu", dtype=torch.float16)
    assert len(taken) == 1
    assert torch.isfinite(encode(large, loader, "cpu")[0]).all()
    # What is not finite to begin with is no matter of the type.
    torch.nn.init.constant_(large[1].weight, float("nan"))
    assert encode(large, loader, "cpu", dtype=torch.float16)[0].isnan().all()


def test_numbers_are_those_of_its_parts():
    module = backbone()
    bank, queries = DataLoader(images(30, 0), 8), DataLoader(images(20, 1), 8)
    found = evaluate(module, bank, queries, num_classes=2, k=5, rates=(0.1, 1.0), epochs=3, batch_size=10)
    bank_features, query_features = encode(module, bank, "cpu"), encode(module, queries, "cpu")
    assert found.knn == knn_accuracy(*bank_features, *query_features, k=5, num_classes=2)
    alone = linear_probe(
        ShuffledFeatures(*bank_features, 10),
        *query_features,
        num_classes=2,
        rates=(0.1, 1.0),
        epochs=3,
        batch_size=10,
    )
    assert found.linear.top1 == alone.top1 and torch.equal(found.linear.weight, alone.weight)
    assert (found.training_images, found.queries, found.features, found.augmented) == (30, 20, 5, False)


def test_the_result_is_plain_values():
    found = evaluate(backbone(), DataLoader(images(30, 0), 8), DataLoader(images(20, 1), 8), num_classes=2, epochs=2)
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    sweep = content["linear"]["sweep"]
    assert content["linear"]["top1"] == max(sweep["top1"]) and content["linear"]["top5"] is None
    assert content["linear"]["rate"] in sweep["rates"] and len(sweep["rates"]) == len(sweep["top1"]) == 8
    assert content["knn"]["k"] == 30  # no more than there are
    assert content["linear"]["training_images"] == "features computed once"


def test_augmented_images_are_encoded_anew_every_epoch():
    module, seen = backbone(), []
    module.register_forward_hook(lambda _, inputs, output: seen.append((module.training, inputs[0].sum().item())))
    augmented = DataLoader(images(24, 0), 8, shuffle=True, generator=torch.Generator().manual_seed(0))
    loaders = DataLoader(images(24, 0), 8), DataLoader(images(8, 1), 8)
    found = evaluate(module, *loaders, num_classes=2, augmented=augmented, epochs=4, rates=(0.1, 1.0, 3.0))
    assert len(seen) == 3 + 1 + 4 * 3  # bank, queries, and once an epoch for all rates
    assert not any(training for training, _ in seen)
    assert len({total for _, total in seen[4:]}) == 4 * 3
    assert found.as_dict()["linear"]["training_images"] == "augmented every epoch"


def test_the_module_stays_as_it_was():
    module = backbone()
    module[0].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    loaders = [DataLoader(images(16, seed), 8) for seed in range(3)]
    evaluate(module, *loaders[:2], num_classes=2, augmented=loaders[2], epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_encoded_batches_need_no_memory_for_gradients():
    (features, labels), *_ = EncodedBatches(backbone(), DataLoader(images(4, 0), 4), "cpu")
    assert features.shape == (4, 5) and not features.requires_grad and labels.tolist() == [0, 1, 0, 1]
