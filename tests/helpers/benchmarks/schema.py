"""What a document of results must hold."""

from benchmarks import results

TYPES = {
    "commit": str, "dirty": bool, "date": str, "python": str, "torch": str, "numpy": str, "triton": (str, type(None)),
    "amcl_fast": str, "driver": (str, type(None)), "threads": int, "load": float, "elsewhere": (float, type(None)),
    "seconds": float,
}  # fmt: skip


def check_schema(found):
    """What the docstring of `benchmarks.results` says of a document."""
    assert found["schema"] == results.SCHEMA == 1
    assert found["machine"].keys() == {"device", "name", "cores", "memory_gib"}
    for section in found["sections"].values():
        assert section.keys() == {"environment", "rows"}
        for name, kind in TYPES.items():
            assert isinstance(section["environment"][name], kind), name
        assert all(isinstance(row, dict) for row in section["rows"])


def rows_of_parts(sections):
    """What the section `parts` says of each."""
    return {row["part"]: row for row in sections["parts"]["rows"]}
