"""Tables of the sections of a machine's JSON, in Markdown, and lines for the terminal."""

from collections.abc import Callable
from typing import Any

from ..cases import PRODUCTS
from ..peers import PEERS

_TARGETS = {
    PRODUCTS: "≤ {:g} × products", "memory": "memory ≤ 1/{:g} of dense", "gib": "< {:g} GiB",
    "bandwidth": "≥ {:.0%} of copy bandwidth",
}  # fmt: skip
_FOUND = {PRODUCTS: "{:.2f} ×", "memory": "1/{:.0f}", "gib": "{:.2f} GiB", "bandwidth": "{:.0%}"}


def operators(rows: list[dict[str, Any]]) -> str:
    """Table of the operators: times, speed-up over each peer, share of the bare products, memory, targets."""
    peers = [peer for peer in PEERS if any(peer in row["runs"] for row in rows)]
    head = ["case", "dtype, backend", "ms (quartiles)", *(f"× {peer}" for peer in peers), "of the products"]
    lines = []
    for row in rows:
        ours = row["runs"]["ours"]
        cells = [row["case"], f"{row['dtype']}, {row['backend']}", _quartiles(ours)]
        cells += [_speed_up(row, peer) for peer in peers]
        cells += [_or_dash(row["ratios"].get(PRODUCTS), "{:.2f} ×"), _memory(row), _verdicts(row)]
        lines.append(cells)
    return table([*head, "extra memory", "target"], lines)


def headline(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Table of a few operators, each with the kind of device that it was measured on, in few columns."""
    peers = ("dense", "compiled")
    lines = []
    for device, row in rows:
        speed_up = [_speed_up(row, peer) for peer in peers]
        memory = _or_dash(row["ratios"].get("memory"), "1/{:.0f}")
        lines.append([row["case"], f"{device}, {row['dtype']}", _three_digits(_median_ms(row)), *speed_up, memory])
    head = ["forward and backward", "on", "ms", *(f"× {peer}" for peer in peers), "memory of dense"]
    return table(head, lines)


def peers() -> str:
    """Table of what the peers are."""
    return table(["peer", "what it is"], [[peer.name, peer.about] for peer in PEERS.values()])


def operator_line(row: dict[str, Any]) -> str:
    """One line about one case, for the terminal."""
    parts = [_quartiles(row["runs"]["ours"]) + " ms"]
    parts += [f"{_speed_up(row, peer)} {peer}" for peer in PEERS if peer in row["runs"]]
    if PRODUCTS in row["ratios"]:
        parts.append(f"{row['ratios'][PRODUCTS]:.2f} × the products")
    return "; ".join([*parts, _memory(row), _verdicts(row)])


def pipeline(rows: list[dict[str, Any]]) -> str:
    """Table of the data pipelines, a line for each size and set of augmentations; a second one of the storages."""
    storages, rows = [[row for row in rows if ("storage" in row) == kept] for kept in (True, False)]
    keys = list(dict.fromkeys((row["size"], row["letters"]) for row in rows))
    of = {(row["size"], row["letters"], row["library"]): row for row in rows}
    lines = []
    for size, letters in keys:
        ours, peer = (of.get((size, letters, library), {}) for library in ("dali", "torchvision"))
        cells = [f"{size} px", letters or "resize only"]
        for name, form in (("images_per_second", "{:.0f}"), ("processor_ms", "{:.2f}")):
            cells += [_or_dash(_median(row, name), form) if row else "–" for row in (ours, peer)]
        cost = [_median(row, "processor_ms") for row in (ours, peer)]
        cells.append(_or_dash(cost[1] / cost[0] if cost[0] and cost[1] else None, "{:.1f}"))
        cells += [_or_dash(_added(of, size, letters, library), "{:+.2f}") for library in ("dali", "torchvision")]
        lines.append(cells)
    return table(
        ["size", "augmentations", "DALI, images/s", "torchvision, images/s", "DALI, CPU ms/image",
         "torchvision, CPU ms/image", "×", "added by the letter, DALI", "torchvision"],
        lines,
    ) + (f"\n\n{_storages(storages)}" if storages else "")  # fmt: skip


def _storages(rows: list[dict[str, Any]]) -> str:
    """Table of where photographs are kept."""
    if any("missing" in row for row in rows):
        return table(["kept as", "why not"], [[row["storage"], row.get("missing", "–")] for row in rows])
    base = rows[0]
    lines = [
        [
            f"{row['storage']}, {row['size']} px, {row['letters']}",
            f"{row['bytes'] / 1e3:.0f}",
            f"{row['images_per_second'][1]:.0f}",
            f"{row['processor_ms'][1]:.2f}",
            f"{base['processor_ms'][1] / row['processor_ms'][1]:.2f}",
        ]
        for row in rows
    ]
    return table(["kept as", "kB an image", "images/s", "CPU ms/image", "× the first"], lines)


def losses(rows: list[dict[str, Any]]) -> str:
    """Table of whole losses on a GPU: a line for each, with its runs in milliseconds by the clock."""
    of = {(row["case"], row["run"]): row for row in rows}
    runs = ("graphed", "ours, compiled", "dense", "dense, compiled")
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        ours = of.get((case, "ours"), {})
        cells = [case, _or_dash(ours.get("kernels"), "{:.0f}")]
        cells += [_or_dash(ours.get(f"{kind}_ms"), "{:.2f}") for kind in ("busy", "wall", "graph")]
        lines.append(cells + [_or_dash(of.get((case, run), {}).get("wall_ms"), "{:.2f}") for run in runs])
    return table(
        [
            "loss",
            "kernels",
            "busy",
            "ours",
            "as one graph",
            "by make_graphed_callables",
            "compiled",
            "dense",
            "compiled",
        ],
        lines,
    )


def training(rows: list[dict[str, Any]]) -> str:
    """Table of training steps: images/s and the share of each phase."""
    phases = list(rows[0]["milliseconds"])
    lines = []
    for row in rows:
        total = sum(row["milliseconds"].values())
        shares = [f"{row['milliseconds'][phase] / total:.1%}" for phase in phases]
        lines.append([f"`{row['recipe']}`", f"{row['images_per_second']:.0f}", f"{total:.0f}", *shares])
    return table(["recipe", "images/s", "ms a step", *phases], lines)


def scaling(rows: list[dict[str, Any]]) -> str:
    """Table of exponents."""
    runs = ("ours", "dense", "products")
    lines = [
        [
            row["axis"],
            f"{row['values'][0]:,} – {row['values'][-1]:,}",
            *(_or_dash(row[run]["exponent"], "{:.2f}") for run in runs),
            *(_or_dash(row[run]["memory_exponent"], "{:.2f}") for run in runs[:2]),
        ]
        for row in rows
    ]
    return table(["in", "from – to", "time: ours", "dense", "products", "extra memory: ours", "dense"], lines)


def scale(rows: list[dict[str, Any]]) -> str:
    """Table of the rehearsal at the size of ImageNet: what, its target, what was found."""
    lines = [
        [row["what"], "–", "–", row["missing"]]
        if "missing" in row
        else [row["what"], _scale_target(row), _scale_found(row), row["note"] or "–"]
        for row in rows
    ]
    return table(["what", "target", "found", "in detail"], lines)


def scale_line(row: dict[str, Any]) -> str:
    """One line about one row of the rehearsal, for the terminal."""
    if "missing" in row:
        return f"{row['what']}: {row['missing']}"
    target = "" if row["target"] is None else f" (target {_scale_target(row)})"
    return f"{row['what']}: {_scale_found(row)}{target}" + (f"; {row['note']}" if row["note"] else "")


def _scale_target(row: dict[str, Any]) -> str:
    if row["target"] is None:
        return "–"
    verdict = {True: "met", False: "**missed**", None: "holds at full size"}[row["met"]]
    return f"≤ {row['target']:g}{_unit(row)}: {verdict}"


def _scale_found(row: dict[str, Any]) -> str:
    basis = "" if row["basis"] == "measured" else f", {row['basis']}"
    return f"{_three_digits(row['value'])}{_unit(row)}{basis}"


def _unit(row: dict[str, Any]) -> str:
    return f" {row['unit']}" if row["unit"] else ""


def _quartiles(run: dict[str, Any]) -> str:
    return f"{_three_digits(run['median_ms'])} ({_three_digits(run['q1_ms'])} – {_three_digits(run['q3_ms'])})"


def _median_ms(row: dict[str, Any]) -> float:
    return row["runs"]["ours"]["median_ms"]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _speed_up(row: dict[str, Any], peer: str) -> str:
    run = row["runs"].get(peer)
    if run is None:
        return "–"
    if "missing" in run:
        return "not installed"
    if "failed" in run:
        return "failed"
    if "wrong" in run:
        return f"wrong by {run['wrong']:.0e}"
    return f"{row['ratios'][peer]:.1f}"


def _memory(row: dict[str, Any]) -> str:
    extra = row["runs"]["ours"]["extra_bytes"]
    if extra is None:
        return "not measured"
    text = f"{extra / 2**20:,.0f} MiB"
    return text + (f", 1/{row['ratios']['memory']:.0f} of dense" if "memory" in row["ratios"] else "")


def _verdicts(row: dict[str, Any]) -> str:
    parts = []
    for name, target in row["targets"].items():
        wanted = _TARGETS.get(name, f"≥ {{:g}} × {name}").format(target)
        found = row["ratios"].get(name)
        figure = "not measured" if found is None else _FOUND.get(name, "{:.2f} ×").format(found)
        parts.append(f"{wanted}: {'met' if row['met'][name] else 'missed'} ({figure})")
    return "; ".join(parts) or "–"


def _median(row: dict[str, Any], name: str) -> float | None:
    return row[name][1] if name in row else None


def _added(of: dict[tuple[int, str, str], dict[str, Any]], size: int, letters: str, library: str) -> float | None:
    """What the one letter beside the crop (or the crop itself) adds to the processor time."""
    if not letters or len(letters) > 2:
        return None
    with_it, without = (_median(of.get((size, x, library), {}), "processor_ms") for x in (letters, letters[:-1]))
    return None if with_it is None or without is None else with_it - without


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def table(head: list[str], lines: list[list[str]]) -> str:
    """Markdown of a table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


TABLES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], str]]] = {
    "operators": ("Operators and losses, forward and backward.", operators),
    "losses": ("Whole losses on the GPU, forward and backward, ms a step.", losses),
    "scaling": ("Exponents of the contrast's time and memory.", scaling),
    "pipeline": ("Two views of an image.", pipeline),
    "training": ("Where a training step's time goes.", training),
    "scale": ("A rehearsal at the size of ImageNet.", scale),
}
"""By section: its title, and its table."""
