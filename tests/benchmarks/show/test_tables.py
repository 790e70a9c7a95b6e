from benchmarks.peers import PEERS
from benchmarks.show import tables
from tests.helpers.benchmarks.tiny import document


def test_operators_table():
    head, _, line = tables.operators(document()["sections"]["operators"]["rows"]).splitlines()
    assert head == (
        "| case | dtype, backend | ms (quartiles) | × dense | × compiled | × lightly | of the products | extra memory "
        "| target |"
    )
    assert line == (
        "| SimCLR | float32, native | 10 (9 – 11) | 5.0 | wrong by 3e-01 | not installed | 0.50 × "
        "| 2 MiB, 1/32 of dense | ≥ 4 × dense: met (5.00 ×); ≤ 0.4 × products: missed (0.50 ×); "
        "memory ≤ 1/20 of dense: met (1/32); ≥ 3 × compiled: missed (not measured) |"
    )


def test_pipeline_table():
    table, storages = tables.pipeline(document()["sections"]["pipeline"]["rows"]).split("\n\n")
    *_, alone, blurred = table.splitlines()
    assert alone == "| 32 px | a | 100 | – | 1.00 | – | – | – | – |"
    assert blurred == "| 32 px | ab | 100 | 100 | 1.50 | 6.00 | 4.0 | +0.50 | – |"
    assert storages.splitlines()[2:] == [
        "| files, 224 px, abcde | 116 | 100 | 8.00 | 1.00 |",
        "| shards, 256 px, 224 px, abcde | 31 | 100 | 5.00 | 1.60 |",
    ]


def test_training_and_scaling_tables():
    assert tables.training(document()["sections"]["training"]["rows"]).splitlines()[-1] == (
        "| `demo` | 400 | 100 | 1.0% | 9.0% | 90.0% |"
    )
    assert tables.scaling(document()["sections"]["scaling"]["rows"]).splitlines()[-1] == (
        "| N | 256 – 512 | 2.00 | 2.00 | 2.00 | 1.00 | 1.00 |"
    )


def test_losses_table():
    assert tables.losses(document()["sections"]["losses"]["rows"]).splitlines()[-1] == (
        "| InfoNCE | 57 | 0.30 | 2.00 | – | 0.50 | – | 2.50 | – |"
    )


def test_line_for_the_terminal():
    (row,) = document()["sections"]["operators"]["rows"]
    assert tables.operator_line(row).startswith("10 (9 – 11) ms; 5.0 dense; wrong by 3e-01 compiled; not installed")


def test_the_headline_has_few_columns():
    (row,) = document()["sections"]["operators"]["rows"]
    head, _, line = tables.headline([("CPU", row)]).splitlines()
    assert head == "| forward and backward | on | ms | × dense | × compiled | memory of dense |"
    assert line == "| SimCLR | CPU, float32 | 10 | 5.0 | wrong by 3e-01 | 1/32 |"


def test_every_peer_is_explained():
    lines = tables.peers().splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {name}" for name in PEERS]
