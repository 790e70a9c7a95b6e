"""What was predicted of a device before it was measured, and the table that puts the one beside the other.

`python -m benchmarks.gpu --table FILE` prints it from the JSON of a machine.
"""

from dataclasses import dataclass
from typing import Any

H100 = "NVIDIA H100 80GB HBM3"
# Names of kernels that are predicted, and what the results of before they told their operator call them.
_FORMER = {
    "_select_maxima": "_maxima",
    "_select_bounds": "_bounds",
    "_dense_forward": "_forward",
    "_dense_gradient": "_gradient",
}


@dataclass(frozen=True)
class Prediction:
    """A range, in the unit of what is measured.

    Attributes:
        device: name of the GPU.
        written: when, in UTC as ISO 8601 has it.
        section: of the JSON.
        row: what tells the row, its `case`, `task` or `loss`, and its `run` (empty: it has none).
        value: the row's field, or the name of a kernel, whose milliseconds a step are meant; `a/b` of runs of a timed
            case is the ratio of their medians.
        low, high: what was expected.
        basis: from what, in a few words.
    """

    device: str
    written: str
    section: str
    row: tuple[str, str]
    value: str
    low: float
    high: float
    basis: str

    def measured(self, document: dict[str, Any]) -> tuple[float | None, float | None]:
        """What a machine's JSON has from before the prediction and from after it, the latest of each; or None.

        An operator had tables of its own before it could have one, and whole losses stood in the section `breakdown`.
        """
        before: tuple[str, float | None] = "", None
        after: tuple[str, float | None] = "", None
        name, run = self.row
        for title, section in document["sections"].items():
            date = section["environment"]["date"]
            earlier = date < self.written
            sections = (self.section, "breakdown") if earlier else (self.section,)
            names = (name, name.removesuffix(", one table")) if earlier else (name,)
            if title.split("-")[0] not in sections:
                continue
            for row in section["rows"]:
                if (row.get("case") or row.get("task") or row.get("loss")) in names and row.get("run", "") == run:
                    value = self._of(row)
                    if value is not None and earlier and date >= before[0]:
                        before = date, value
                    if value is not None and not earlier and date >= after[0]:
                        after = date, value
        return before[1], after[1]

    def _of(self, row: dict[str, Any]) -> float | None:
        if "runs" in row:
            medians = [row["runs"].get(run, {}).get("median_ms") for run in self.value.split("/")]
            if None in medians:
                return None
            return medians[0] / medians[1] if len(medians) == 2 else medians[0]
        if self.value in row:
            return row[self.value]
        kernels = row.get("kernels")
        names = (self.value, _FORMER.get(self.value, self.value))
        us = [kernel["us"] for kernel in kernels if kernel["name"] in names] if isinstance(kernels, list) else []
        return sum(us) / 1e3 if us else None


def table(document: dict[str, Any]) -> str:
    """The predictions for the machine of a document beside what it has, in Markdown.

    Raises:
        ValueError: there are no predictions for this device.
    """
    chosen = [one for one in PREDICTIONS if one.device == document["machine"]["name"]]
    if not chosen:
        raise ValueError(f"no predictions for {document['machine']['name']!r}")
    lines = ["| what | before | predicted | measured | verdict | from | written |", "|---|---|---|---|---|---|---|"]
    for one in chosen:
        name, run = one.row
        what = f"{name}{', ' + run if run not in ('', 'ours') else ''}: {_names(one.value)}"
        before, found = one.measured(document)
        verdict = "–" if found is None else _verdict(found, one)
        cells = [what, _figure(before), _range(one), _figure(found), verdict, one.basis, one.written[:10]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _names(value: str) -> str:
    if value.endswith("_ms"):
        return f"{value.removesuffix('_ms')}, ms"
    if "/" in value:
        return value
    return f"`{value}`, ms" if value.startswith("_") else f"{value}, ms"


def _range(one: Prediction) -> str:
    return f"{one.low:g}" if one.low == one.high else f"{one.low:g} – {one.high:g}"


def _verdict(found: float, one: Prediction) -> str:
    """Within the range, or how far beyond its end; a range of one number has a tenth on either side."""
    low, high = (0.9 * one.low, 1.1 * one.high) if one.low == one.high else (one.low, one.high)
    if low <= found <= high:
        return "as predicted"
    return f"{found / (high if found > high else low):.2f} × the {'upper' if found > high else 'lower'} end"


def _h100(
    section: str,
    case: str,
    value: str,
    low: float,
    high: float,
    basis: str,
    run: str = "ours",
    written: str = "2026-11-26T17:00:00+00:00",
) -> Prediction:
    return Prediction(H100, written, section, (case, run), value, low, high, basis)


def _per_anchor(case: str, value: str, low: float, high: float, basis: str) -> Prediction:
    """Of a temperature per anchor, beside the constant."""
    return _h100("breakdown", case, value, low, high, basis, written="2026-11-27T12:00:00+00:00")


_SIMCLR, _MOCO = "SimCLR, N = 4096, one table", "MoCo, N = 256, queue 65,536"
_ALL, _NT_XENT = "SimCLR, N = 4096, softmax over all, one table", "NT-Xent, N = 4096, one table"
_BARLOW = "Barlow Twins, d = 8192, N = 1024"
_COUNT, _SUM = "counts of instructions and bytes", "the sum of its kernels"

_CONSTANT, _PERPLEXITY = "SimCLR, N = 4096, constant τ, one table", "SimCLR, N = 4096, perplexity, one table"
_PERPLEXITY_OF_ALL = "SimCLR, N = 4096, perplexity over all, one table"

PREDICTIONS = (
    _h100("breakdown", _SIMCLR, "busy_ms", 0.95, 1.1, _SUM),
    _h100("breakdown", _SIMCLR, "_select_maxima", 0.115, 0.125, "four warps, as measured"),
    _h100("breakdown", _SIMCLR, "_select_bounds", 0.03, 0.04, _COUNT),
    _h100("breakdown", _SIMCLR, "_select_bits", 0.13, 0.15, _COUNT),
    _h100("breakdown", _SIMCLR, "_select_lists", 0.055, 0.065, _COUNT),
    _h100("breakdown", _SIMCLR, "_select_values", 0.03, 0.04, _COUNT),
    _h100("breakdown", _SIMCLR, "_select_pick", 0.025, 0.035, _COUNT),
    _h100("breakdown", _MOCO, "busy_ms", 0.35, 0.4, _SUM),
    _h100("breakdown", _MOCO, "_topk_few_sums", 0.03, 0.05, _COUNT),
    _h100("breakdown", _ALL, "busy_ms", 1.4, 1.8, _SUM),
    _h100("breakdown", _ALL, "_dense_forward", 0.4, 0.6, _COUNT),
    _h100("breakdown", _ALL, "_dense_gradient", 0.9, 1.2, _COUNT),
    _h100("breakdown", _NT_XENT, "busy_ms", 0.5, 0.65, _SUM),
    _h100("breakdown", _BARLOW, "busy_ms", 2.0, 2.0, _SUM),
    _h100("breakdown", _BARLOW, "_decorrelate_elements", 0.3, 0.3, _COUNT),
    _h100("losses", "Whole loss: AMCL-MoCo, N = 256, queue 65,536", "busy_ms", 1.1, 1.4, _SUM),
    _h100("losses", "Whole loss: AMCL-SimCLR, N = 256, InfoNCE", "wall_ms", 1.2, 2.0, "launches and operators left"),
    _h100("losses", "Whole loss: AMCL-SimCLR, N = 256, InfoNCE", "graph_ms", 0.2, 0.3, "the work of its kernels"),
    _h100("operators", "SimCLR, N = 65,536", "ours", 75, 100, "256 times N = 4096", ""),
    _per_anchor(_CONSTANT, "busy_ms", 0.7, 0.85, "adaptive less φ's scores, gathers and slopes"),
    _per_anchor(_PERPLEXITY, "busy_ms", 0.71, 0.89, "the constant's, and one kernel"),
    _per_anchor(_PERPLEXITY, "_perplexity_rows", 0.012, 0.025, _COUNT),
    _per_anchor(_PERPLEXITY, "_topk_rows", 0.01, 0.02, _COUNT),
    _per_anchor(_PERPLEXITY_OF_ALL, "_perplexity_tiles", 0.5, 0.9, _COUNT),
    _per_anchor(_PERPLEXITY_OF_ALL, "busy_ms", 1.0, 1.6, "NT-Xent's, and one kernel"),
)
