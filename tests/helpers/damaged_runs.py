"""What can become of a file of a run, a study or a cache: by the kind of file, for every reader of it."""

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Change = Callable[[Path], object]

_DEEP = 10_000
_LONG = "9" * 400


def damage(path: Path, *, values: bool = True) -> Iterator[tuple[str, Change]]:
    """Kinds of damage of a file that is there, by its ending, and what does it.

    What is done replaces the file: one that others have under another name as well stays as it is.

    Args:
        path: of the good one.
        values: also single values of another type, of files that have names for them.
    """
    good = path.read_bytes()
    contents = {**_any(good), **_KINDS.get(path.suffix, lambda good: {})(good)}
    for name, content in contents.items():
        if values or not re.search(" is (?!missing$)", name):
            yield name, _written(content)
    for name, make in _PLACES.items():
        yield name, lambda path, make=make: (_remove(path), make(path))


TOLD = {"not UTF-8", "NULs", "NULs within", "another program's", "a folder", "a FIFO", "a link that leads nowhere"}
TOLD |= {"a link to itself", "8 GiB of nothing"}
"""Kinds that no file may be read with."""


def _written(content: bytes) -> Change:
    return lambda path: (_remove(path), path.write_bytes(content))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 30)


_PLACES: dict[str, Change] = {
    "missing": lambda path: None,
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "8 GiB of nothing": _sparse,
}


def _any(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "cut off": good[: len(good) * 2 // 3],
        "all but the last byte": good[:-1],
        "not UTF-8": good[: len(good) // 2] + b"\xff\xfe" + good[len(good) // 2 :],
        "NULs": bytes(max(len(good), 100)),
        "NULs within": good[: len(good) // 2] + bytes(8) + good[len(good) // 2 :],
        "another program's": b"\x7fELF\x02\x01\x01" + bytes(range(256)),
    }


_VALUES: dict[str, str] = {
    "text": '"3"',
    "a list": "[1, 2]",
    "a mapping": '{"a": 1}',
    "a truth value": "true",
    "nothing": "null",
    "a number": "0.5",
    "a negative number": "-7",
    "a number without end": "1e999",
    "a number of many digits": _LONG,
    "a letter that is none": '"\\ud800"',
}


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all values in mappings and lists, groups included but for the whole."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*place, key))
    elif isinstance(value, list):
        for key, item in enumerate(value[:1]):
            yield from leaves(item, (*place, key))


def _put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place; `...`: without it."""
    if not place:
        return new
    key, *rest = place
    if isinstance(value, list):
        return [_put(item, tuple(rest), new) if number == key else item for number, item in enumerate(value)]
    return {
        name: _put(item, tuple(rest), new) if name == key else item
        for name, item in value.items()
        if rest or new is not ... or name != key
    }


def _json(good: bytes) -> dict[str, bytes]:
    value = json.loads(good)
    found = {
        "a list": "[1, 2]",
        "a number": "3",
        "null": "null",
        "text": '"text"',
        "an empty mapping": "{}",
        "nested": "[" * _DEEP + "]" * _DEEP,
        "nested mappings": '{"a":' * _DEEP + "1" + "}" * _DEEP,
        "nested within": json.dumps(value)[:-1] + ', "more": ' + "[" * 500 + "]" * 500 + "}",
        "names twice": json.dumps(value)[:-1] + ", " + json.dumps(value)[1:],
    }
    mark = "\0here"
    for number, place in enumerate(leaves(value)):
        if any(isinstance(key, int) for key in place[:-1]):
            continue
        name = ".".join(map(str, place))
        text = json.dumps(_put(value, place, mark))
        for what, new in list(_VALUES.items())[number % 4 :: 4]:
            found[f"{name} is {what}"] = text.replace(json.dumps(mark), new)
        found[f"{name} is NaN"] = text.replace(json.dumps(mark), "NaN")
        if isinstance(place[-1], str):
            found[f"{name} is missing"] = json.dumps(_put(value, place, ...))
    return {name: text.encode() for name, text in found.items()}


def _yaml(good: bytes) -> dict[str, bytes]:
    import yaml

    value, text = yaml.safe_load(good), good.decode()
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(30))
    found = {
        "a list": "[1, 2]",
        "a number": "3",
        "null": "null",
        "text": "text",
        "nested": "a: " + "[" * _DEEP + "]" * _DEEP,
        "a bomb": text + bomb,
        "of Python": text + "\nmore: !!python/object/apply:os.getcwd []\n",
        "a tag": text + "\nmore: !elsewhere 3\n",
        "names that are no text": text + "\n? [1, 2]\n: 3\n",
        "names twice": text + "\n" + text,
        "an alias of nothing": text + "\nmore: *nothing\n",
        "a tab": text.replace("\n", "\n\t", 3),
        "two documents": text + "\n---\n" + text,
        "a long text": text + "\nmore: " + "x" * 100_000 + "\n",
    }
    mark = "here_it_is"
    for place in leaves(value):
        if any(isinstance(key, int) for key in place) or len(place) > 3:
            continue
        changed = yaml.safe_dump(_put(value, place, mark), sort_keys=False)
        for what, new in {**_VALUES, "a number without end": ".inf", "NaN": ".nan"}.items():
            found[f"{'.'.join(map(str, place))} is {what}"] = changed.replace(mark, new)
        found[f"{'.'.join(map(str, place))} is missing"] = yaml.safe_dump(_put(value, place, ...), sort_keys=False)
    return {name: text.encode() for name, text in found.items()}


def _csv(good: bytes) -> dict[str, bytes]:
    head, *rows = good.decode().splitlines()
    first = head.split(",")[-1]

    def lines(*of: str) -> bytes:
        return ("\r\n".join(of) + "\r\n").encode()

    def with_value(value: str) -> bytes:
        """The last value of every row that has one."""
        return lines(head, *(f"{row.rpartition(',')[0]},{value}" for row in rows))

    found = {
        "a head alone": lines(head),
        "no head": lines(*rows),
        "a huge field": lines(head, "1," + "x" * 200_000 + "," * (head.count(",") - 1), *rows),
        "a huge quoted field": lines(head, '1,"' + "x\n" * 200_000, *rows),
        "an open quote": lines(head, '1,"2', *rows),
        "a line without end": (head + "\r\n" + "1" * (2 << 20)).encode(),
        "a column twice": lines(f"{head},{first}", *(f"{row},1" for row in rows)),
        "the step twice": lines(f"{head},step", *(f"{row},1" for row in rows)),
        "a column without a name": lines(f"{head},", *(f"{row},1" for row in rows)),
        "no step": lines(head.replace("step", "stop"), *rows),
        "a shorter row": lines(head, rows[0].rpartition(",")[0], *rows[1:]),
        "a longer row": lines(head, f"{rows[0]},3", *rows[1:]),
        "a step that is none": lines(head, "x" + rows[0], *rows[1:]),
        "a step that is no number": lines(head, "nan" + rows[0][rows[0].index(",") :], *rows[1:]),
        "a negative step": lines(head, "-" + rows[-1], *rows[1:]),
        "half a step": lines(head, "1.5" + rows[0][rows[0].index(",") :], *rows[1:]),
        "half a last value": good.rstrip()[:-1],
        "semicolons": good.replace(b",", b";"),
        "many columns": lines(",".join(["step", *(f"loss_{n}" for n in range(20_000))]), "1" + ",2" * 20_000),
        "many terms": lines(",".join(["step", *(f"loss_{n}" for n in range(200))]), "1" + ",2" * 200),
        "many heads": lines(",".join(["step", *(f"tau_positive_head_{n}" for n in range(900))]), "1" + ",2" * 900),
    }
    values = {"text": "x", "infinite": "inf", "a number of many digits": _LONG, "beyond": "1e300", "a list": '"[1, 2]"'}
    return found | {f"the last value is {what}": with_value(value) for what, value in values.items()}


def _npz(arrays: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in arrays.items():
            archive.writestr(name, content)
    return file.getvalue()


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def _npz_kinds(good: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    found = {
        "no array": _npz({}),
        "a member of nothing": _npz(dict.fromkeys(members, b"")),
        "another kind of file": _npy(np.zeros(3)),
        "pickled": pickle.dumps(_Code()),
    }
    sorts = set()
    for name, content in members.items():
        short = name.removesuffix(".npy")
        array = np.load(io.BytesIO(content))
        if (sort := (array.dtype.kind, array.ndim)) in sorts:
            continue  # as another one
        sorts.add(sort)
        others = {
            "empty": b"",
            "cut off": content[: len(content) * 2 // 3],
            "code": _npy(np.array([_Code()], object)),
            "text": _npy(np.full(array.shape, "x")),
            "complex": _npy(np.ones(array.shape, complex)),
            "of truth values": _npy(np.ones(array.shape, bool)),
            "a record": _npy(np.zeros(array.shape, [("a", "f4"), ("b", "f4")])),
            "a date": _npy(np.zeros(array.shape, "M8[s]")),
            "a number": _npy(np.array(1)),
            "of no length": _npy(np.empty((0, *array.shape[1:]), array.dtype)),
            "of one dimension more": _npy(array[None]),
            "of other sizes": _npy(np.concatenate([array, array]) if array.ndim else array[None, None]),
            "of a size beyond": _header(array.dtype.str, (1 << 40, *array.shape[1:])) + content[-8:],
            "of a negative size": _header(array.dtype.str, (-1, *array.shape[1:])) + content[-8:],
        }
        if array.dtype.kind == "f":
            others |= {"NaN": _npy(np.full_like(array, np.nan)), "infinite": _npy(np.full_like(array, np.inf))}
        if array.dtype.kind == "i":
            others |= {"negative": _npy(np.full_like(array, -5)), "large": _npy(np.full_like(array, 1 << 40))}
        if array.dtype.kind == "U":
            others |= {
                "markup": _npy(np.full(array.shape, "$\\frac{$<b>\0")),
                "long": _npy(np.full(array.shape, "x" * 5000)),
            }
        found |= {f"{short} is {what}": _npz({**members, name: other}) for what, other in others.items()}
        found[f"{short} is missing"] = _npz({of: member for of, member in members.items() if of != name})
    # What the archive says of its first member: 4 GB of a few bytes, or a few bytes of 32 MB.
    for what, size, content in (("a bomb", 0xFFFFFFF0, b"x"), ("a size that is not so", 16, bytes(1 << 25))):
        said = bytearray(_npz({next(iter(members)): content, **dict(list(members.items())[1:])}))
        place = said.index(b"PK\1\2") + 24
        said[place : place + 4] = size.to_bytes(4, "little")
        found[what] = bytes(said)
    found["other packing"] = _npz(members, zipfile.ZIP_LZMA)
    return found


def _ckpt(good: bytes) -> dict[str, bytes]:
    import torch

    state = torch.load(io.BytesIO(good), weights_only=True)

    def saved(value: Any) -> bytes:
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()

    found = {
        "a list": saved([1, 2]),
        "a mapping of nothing": saved({}),
        "code": saved({**state, "more": _Code()}),
        "pickled": pickle.dumps(_Code()),
        "packed": _npz({"archive/data.pkl": bytes(1 << 26), "archive/version": b"3\n"}),
    }
    for name in ("state_dict", "settings", "loops"):
        for what, value in {
            "nothing": None,
            "text": "3",
            "a list": [1],
            "a number": 10**40,
            "a mapping": {"a": 1},
        }.items():
            found[f"{name} is {what}"] = saved({**state, name: value})
        found[f"{name} is missing"] = saved({of: value for of, value in state.items() if of != name})
    return found


_KINDS: dict[str, Callable[[bytes], dict[str, bytes]]] = {
    ".json": _json,
    ".yaml": _yaml,
    ".csv": _csv,
    ".npz": _npz_kinds,
    ".ckpt": _ckpt,
}
