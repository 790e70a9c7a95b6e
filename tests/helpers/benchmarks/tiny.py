"""Cases that take milliseconds, and a document of results."""

from dataclasses import replace

from benchmarks.cases import CASES, Case


def tiny(case: Case) -> Case:
    """`case` at a size for tests: the same operator, form and settings."""
    settings = case.settings | ({"top_k": 5} if case.settings.get("top_k") else {})
    contrast = case.operator in ("contrast", "simclr", "moco", "infonce")
    return replace(
        case, rows=20 if contrast else 12, candidates=min(case.candidates, 40), width=16, settings=settings, targets={}
    )


ALL = [tiny(case) for case in CASES]
SIMCLR = ALL[0]

ENVIRONMENT = {
    "commit": "0123456789abcdef", "dirty": False, "date": "2026-01-02T03:04:05+00:00", "python": "3.11.0",
    "torch": "2.11.0", "numpy": "2.0.0", "triton": None, "amcl_fast": "0.1.0", "driver": None, "threads": 2,
    "load": 0.05, "elsewhere": 0.01, "seconds": 60.0,
}  # fmt: skip


def run(milliseconds: float, extra_bytes: int | None = None) -> dict:
    """What a row of the operators holds of one run."""
    return {
        "median_ms": milliseconds, "q1_ms": 0.9 * milliseconds, "q3_ms": 1.1 * milliseconds, "rounds": 5,
        "first_call_ms": 9.0, "error": 1e-7, "extra_bytes": extra_bytes,
    }  # fmt: skip


def document() -> dict:
    """Results of one machine in all sections."""
    axis = {"milliseconds": [1.0, 4.0], "extra_bytes": [2**20, 2**21], "exponent": 2.0, "memory_exponent": 1.0}
    floor = axis | {"extra_bytes": [None, None], "memory_exponent": None}
    rates = {"rounds": 3, "images_per_second": [90.0, 100.0, 110.0]}
    return {
        "schema": 1,
        "machine": {"device": "cpu", "name": "Some Processor 1", "cores": 2, "memory_gib": 8.0},
        "sections": {
            "operators": {
                "environment": ENVIRONMENT,
                "rows": [
                    {
                        "case": "SimCLR", "operator": "contrast", "dtype": "float32", "backend": "native",
                        "tolerance": 1e-5, "least_bytes": None,
                        "runs": {
                            "ours": run(10.0, 2**21), "dense": run(50.0, 2**26), "compiled": {"wrong": 0.3},
                            "lightly": {"missing": "not installed"}, "products": run(20.0),
                        },
                        "ratios": {"dense": 5.0, "products": 0.5, "memory": 32.0, "gib": 0.002},
                        "targets": {"dense": 4, "products": 0.4, "memory": 20, "compiled": 3},
                        "met": {"dense": True, "products": False, "memory": True, "compiled": False},
                    }
                ],
            },
            "scaling": {
                "environment": ENVIRONMENT,
                "rows": [{"axis": "N", "values": [256, 512], "ours": axis, "dense": axis, "products": floor}],
            },
            "pipeline": {
                "environment": ENVIRONMENT,
                "rows": [
                    {"size": 32, "letters": "a", "library": "dali", "processor_ms": [0.9, 1.0, 1.1], **rates},
                    {"size": 32, "letters": "a", "library": "torchvision", "missing": "not installed"},
                    {"size": 32, "letters": "ab", "library": "dali", "processor_ms": [1.4, 1.5, 1.6], **rates},
                    {"size": 32, "letters": "ab", "library": "torchvision", "processor_ms": [5.5, 6.0, 6.5], **rates},
                    {
                        "size": 224, "letters": "abcde", "library": "dali", "storage": "files", "bytes": 116_000.0,
                        "processor_ms": [7.0, 8.0, 9.0], **rates,
                    },
                    {
                        "size": 224, "letters": "abcde", "library": "dali", "storage": "shards, 256 px",
                        "bytes": 31_400.0, "processor_ms": [4.5, 5.0, 5.5], **rates,
                    },
                ],
            },
            "scale": {
                "environment": ENVIRONMENT,
                "rows": [
                    {
                        "case": "start", "what": "first scan", "value": 61.2, "unit": "s", "basis": "measured",
                        "target": 60.0, "met": False, "note": "", "details": {},
                    }
                ],
            },
            "losses": {
                "environment": ENVIRONMENT,
                "rows": [
                    {
                        "case": "InfoNCE", "run": "ours", "kernels": 57.0, "busy_ms": 0.3, "wall_ms": 2.0,
                        "graph_ms": None, "graph_problem": "a wait",
                    },
                    {"case": "InfoNCE", "run": "graphed", "wall_ms": 0.5, "same_bits": True},
                    {"case": "InfoNCE", "run": "dense", "kernels": 89, "busy_ms": 0.2, "wall_ms": 2.5, "graph_ms": 1},
                ],
            },
            "training": {
                "environment": ENVIRONMENT,
                "rows": [
                    {
                        "recipe": "demo", "images_per_second": 400.0, "steps": 15,
                        "milliseconds": {"data": 1.0, "loss": 9.0, "optimiser": 90.0},
                    }
                ],
            },
        },
    }  # fmt: skip
