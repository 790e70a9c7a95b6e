"""Everything that can become of an image file, and a run of a loader through all of it.

    python -m tests.helpers.damage walk LOADER FOLDER      all kinds and places, one after the other, in one process
    python -m tests.helpers.damage each LOADER FOLDER      every kind and place in a process of its own

print a JSON line for each: kind, place, outcome. LOADER is training, evaluation or probe. A kind ends the process if
its outcome is missing (walk) or names a signal (each). `python -m tests.helpers.damage decoder` tells whether the
installed DALI still needs the guard (docs/data.md).
"""

import io
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

LOADERS = ("training", "evaluation", "probe")
PLACES = {"first": 0, "middle": 7, "last": 15}
BATCH = 16
# Between the damage and the batch that meets it: nothing has read so far ahead.
AHEAD = 5
HANGS = 60

_noise = np.random.default_rng(0)


def _encoded(kind: str, size: int = 40, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_noise.integers(0, 256, (size, size + 8, 3), np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG, WEBP, BMP = (_encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP"))
_FRAME, _SCAN, _HUFFMAN, _QUANTA = (JPEG.index(bytes([0xFF, marker])) for marker in (0xC0, 0xDA, 0xC4, 0xDB))
_DATA = PNG.index(b"IDAT")


def _patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG[:8] + header + extra + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")


def _exif(content: bytes) -> bytes:
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 8) + b"Exif\0\0" + content + JPEG[2:]


def contents() -> dict[str, bytes]:
    """Kinds of damage that are other bytes."""
    noise = _noise.bytes
    kinds = {f"JPEG cut to {size}": JPEG[:size] for size in (0, 1, 2, 3, 4, 20, 200, 400, len(JPEG) // 2)}
    kinds |= {f"PNG cut to {size}": PNG[:size] for size in (4, 8, 20, 33, 60, len(PNG) // 2, len(PNG) - 12)}
    kinds |= {f"WebP cut to {size}": WEBP[:size] for size in (12, 20, 40, len(WEBP) // 2)}
    kinds |= {f"BMP cut to {size}": BMP[:size] for size in (2, 20, 54, len(BMP) // 2)}
    kinds |= {f"really {kind}": _encoded(kind) for kind in ("GIF", "TIFF", "JPEG2000", "PPM", "ICO", "TGA", "PDF")}
    kinds |= {f"{kind} cut": _encoded(kind)[:60] for kind in ("GIF", "TIFF", "JPEG2000", "PPM")}
    kinds |= {
        "text": b"not found",
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>" * 20,
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "ZIP": b"PK\3\4" + noise(300),
        "Photoshop": b"8BPS" + noise(300),
        "film": b"\0\0\0\x20ftypisom" + noise(400),
        "PPM that lies": b"P6 65535 65535 255\n" + bytes(100),
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
        "random bytes": noise(5000),
        "JPEG: no end": JPEG[:-2],
        "JPEG: header over garbage": JPEG[:_SCAN] + noise(3000),
        "JPEG: scan of garbage": JPEG[: _SCAN + 14] + noise(len(JPEG) - _SCAN - 16) + b"\xff\xd9",
        "JPEG: three bytes over garbage": JPEG[:3] + noise(3000),
        "JPEG: four bytes over zeros": JPEG[:4] + bytes(3000),
        "JPEG: 0 x 0": _patched(JPEG, _FRAME + 5, bytes(4)),
        "JPEG: 65535 x 65535": _patched(JPEG, _FRAME + 5, b"\xff" * 4),
        "JPEG: 3000 x 3000": _patched(JPEG, _FRAME + 5, struct.pack(">HH", 3000, 3000)),
        "JPEG: 12 bits": _patched(JPEG, _FRAME + 4, b"\x0c"),
        "JPEG: lossless": _patched(JPEG, _FRAME + 1, b"\xc3"),
        "JPEG: arithmetic": _patched(JPEG, _FRAME + 1, b"\xc9"),
        "JPEG: hierarchical": _patched(JPEG, _FRAME + 1, b"\xc5"),
        "JPEG: no component": _patched(JPEG, _FRAME + 9, b"\0"),
        "JPEG: two components": _patched(JPEG, _FRAME + 9, b"\2"),
        "JPEG: 255 components": _patched(JPEG, _FRAME + 9, b"\xff"),
        "JPEG: sampled by 0": _patched(JPEG, _FRAME + 11, b"\0"),
        "JPEG: no Huffman tables": JPEG[:_HUFFMAN] + JPEG[_SCAN:],
        "JPEG: bad Huffman table": _patched(JPEG, _HUFFMAN + 5, b"\xff" * 16),
        "JPEG: no quantisation": JPEG[:_QUANTA] + JPEG[_FRAME:],
        "JPEG: no scan": JPEG[:_SCAN] + b"\xff\xd9",
        "JPEG: ends at once": b"\xff\xd8\xff\xd9",
        "JPEG: fill bytes": b"\xff\xd8" + b"\xff" * 3000,
        "JPEG: a segment beyond the end": _patched(JPEG, 4, b"\xff\xff"),
        "JPEG: a segment of 0 bytes": _patched(JPEG, 4, b"\0\0"),
        "JPEG: two frames, the second larger": JPEG[:_SCAN]
        + _patched(JPEG, _FRAME + 5, struct.pack(">HH", 4000, 4000))[_FRAME:_SCAN]
        + JPEG[_SCAN:],
        "JPEG: Exif of garbage": _exif(noise(500)),
        "JPEG: Exif without an end": _exif(b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0" + b"\xff" * 40),
        "JPEG: Exif of 2 bytes": JPEG[:2] + b"\xff\xe1\0\2" + JPEG[2:],
        "PNG: signature over garbage": PNG[:8] + noise(3000),
        "PNG: header over garbage": PNG[:33] + noise(3000),
        "PNG: 0 x 0": _png(0, 0),
        "PNG: 2147483647 x 2147483647": _png(2**31 - 1, 2**31 - 1),
        "PNG: 60000 x 60000": _png(60_000, 60_000),
        "PNG: 48 x 20000 of one row": _png(48, 20_000, data=bytes(1 + 48 * 3)),
        "PNG: 3 bits": _png(8, 8, 3, data=bytes(200)),
        "PNG: colour type 5": _png(8, 8, 8, 5, bytes(200)),
        "PNG: no palette": _png(8, 8, 8, 3, bytes(72)),
        "PNG: no pixels": _png(8, 8),
        "PNG: no data": PNG[:33] + _chunk(b"IEND", b""),
        "PNG: bad checksum of the header": _patched(PNG, 29, bytes(4)),
        "PNG: bad data": _patched(PNG, _DATA + 6, b"\xff" * 8),
        "PNG: a chunk beyond the end": _patched(PNG, _DATA - 4, b"\x7f\xff\xff\xff"),
        "PNG: a chunk of 4 GiB": _patched(PNG, _DATA - 4, b"\xff\xff\xff\xff"),
        "PNG: Exif of 2 GiB": _png(8, 8, data=bytes(200), extra=b"\x7f\xff\xff\xffeXIf"),
        "PNG: two headers": PNG[:33] + PNG[8:],
        "PNG: 50 MB of zeros packed": _png(8, 8, data=bytes(50_000_000)),
        "WebP: signature over garbage": WEBP[:12] + noise(3000),
        "WebP: header over garbage": WEBP[:30] + noise(len(WEBP) - 30),
        "WebP: 0 x 0": _patched(WEBP, 26, bytes(4)),
        "WebP: no sync code": _patched(WEBP, 23, bytes(3)),
        "WebP: longer than it is": _patched(WEBP, 4, b"\xff\xff\xff\x7f"),
        "WebP: 16777216 x 16777216": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(10),
        "WebP: lossless garbage": b"RIFF\x80\0\0\0WEBPVP8L\x74\0\0\0\x2f" + bytes(4) + noise(111),
        "WebP: extended, without an image": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + b"\x08" + bytes(3) + b"\7\0\0\7\0\0",
        "WebP: unknown chunk": b"RIFF\x80\0\0\0WEBPXXXX\x74\0\0\0" + noise(116),
        "BMP: header over garbage": BMP[:14] + noise(3000),
        "BMP: 30000 wide": _patched(BMP, 18, struct.pack("<i", 30_000)),
        "BMP: negative width": _patched(BMP, 18, struct.pack("<i", -48)),
        "BMP: 0 wide": _patched(BMP, 18, bytes(4)),
        "BMP: 2147483647 x 2147483647": _patched(BMP, 18, struct.pack("<ii", 2**31 - 1, 2**31 - 1)),
        "BMP: 7 bits": _patched(BMP, 28, b"\7\0"),
        "BMP: unknown compression": _patched(BMP, 30, b"\x09\0\0\0"),
        "BMP: pixels beyond the end": _patched(BMP, 10, struct.pack("<I", 2**31)),
        "BMP: a header of 2 GiB": _patched(BMP, 14, struct.pack("<I", 2**31)),
        "BMP: a palette of 8 GiB": _patched(_patched(BMP, 28, b"\x08\0"), 46, struct.pack("<I", 2**31 - 1)),
    }
    return kinds


# What a decoder may be able to make sense of; all else must be found and listed.
MAY_DECODE = {
    "JPEG: no end",
    "JPEG: scan of garbage",
    "JPEG: 3000 x 3000",
    "JPEG: arithmetic",
    "JPEG: no Huffman tables",
    "JPEG: bad Huffman table",
    "JPEG: Exif of garbage",
    "JPEG: Exif without an end",
    "JPEG: Exif of 2 bytes",
    "PNG: bad checksum of the header",
    "PNG: 50 MB of zeros packed",
    "WebP: header over garbage",
    "BMP: negative width",
    "BMP: 7 bits",
    "BMP: pixels beyond the end",
    "JPEG over 64 MiB of nothing",
    "file that grows",
    "file that shrinks and grows",
}


def _write(content: bytes) -> Callable[[Path], None]:
    return lambda path: _replace(path, lambda new: new.write_bytes(content))


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """At once, so that a reader meets the old or the new."""
    new = path.with_name("new")
    make(new)
    if new.is_dir() and not new.is_symlink():
        path.unlink()
    os.replace(new, path)


def _socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def _hole(path: Path, head: bytes, size: int) -> None:
    path.write_bytes(head)
    os.truncate(path, size)


def _restless(path: Path, sizes: list[int]) -> None:
    """Change the size of a file for a second, as fast as possible."""
    _write(JPEG)(path)
    until = time.monotonic() + 1

    def change() -> None:
        with path.open("r+b") as file:
            for size in itertools.cycle(sizes):
                file.truncate(size)
                file.seek(0)
                file.write(JPEG[:size])
                file.flush()
                if time.monotonic() > until:
                    break

    threading.Thread(target=change, daemon=True).start()


def kinds() -> dict[str, Callable[[Path], object]]:
    """Name to what does the damage to the file at a path."""
    found: dict[str, Callable[[Path], object]] = {name: _write(content) for name, content in contents().items()}
    return found | {
        "deleted": Path.unlink,
        "folder": lambda path: _replace(path, Path.mkdir),
        "FIFO": lambda path: _replace(path, os.mkfifo),
        "socket": lambda path: _replace(path, _socket),
        "endless device": lambda path: _replace(path, lambda new: new.symlink_to("/dev/zero")),
        "empty device": lambda path: _replace(path, lambda new: new.symlink_to("/dev/null")),
        "terminal": lambda path: _replace(path, lambda new: new.symlink_to("/dev/tty")),
        "link to nowhere": lambda path: _replace(path, lambda new: new.symlink_to("nowhere")),
        "link to itself": lambda path: _replace(path, lambda new: new.symlink_to(path.name)),
        "link to its folder": lambda path: _replace(path, lambda new: new.symlink_to(".")),
        "link to a FIFO": lambda path: (os.mkfifo(path.with_suffix(".pipe")), _replace(path, _link(path, ".pipe"))),
        "file of /proc": lambda path: _replace(path, lambda new: new.symlink_to("/proc/self/status")),
        "1 TiB of nothing": lambda path: _replace(path, lambda new: _hole(new, b"", 2**40)),
        "JPEG over a TiB of nothing": lambda path: _replace(path, lambda new: _hole(new, JPEG, 2**40)),
        "JPEG over 64 MiB of nothing": lambda path: _replace(path, lambda new: _hole(new, JPEG[:-500], 2**26)),
        "file that grows": lambda path: _restless(path, [3, 200, 900, len(JPEG)]),
        "file that shrinks and grows": lambda path: _restless(path, [len(JPEG), 900, 200, 0]),
    }


def _link(path: Path, suffix: str) -> Callable[[Path], None]:
    return lambda new: new.symlink_to(path.with_suffix(suffix).name)


def cases() -> list[tuple[str, str]]:
    """(kind, place) of all."""
    return [(kind, place) for kind in kinds() for place in PLACES]


class Stage:
    """A loader of images whose label is their number, and what is known of the batches to come."""

    def __init__(self, loader: str, folder: Path, batches: int) -> None:
        from amcl_fast.data.scan.images import Images

        self.name, count = loader, batches * BATCH
        folder.mkdir(parents=True)
        good = folder / "good.jpg", folder / "good.png"
        for path, content in zip(good, (JPEG, PNG), strict=True):
            path.write_bytes(content)
        self.files = [folder / f"{number:05}" for number in range(count)]
        self.bad: dict[str, str] = {}
        labels = list(range(count))
        if loader != "evaluation":
            # The order depends on the number of files alone.
            twin = self._make(Images([str(good[0])] * count, labels, []))
            self._order = [batch[1].tolist() for batch in twin]
        for number, path in enumerate(self.files):
            os.link(good[number % 2], path)
        self._batches = iter(self._make(Images([str(path) for path in self.files], labels, [])))
        self._number = -1
        self._last = -1

    def _make(self, images: object) -> object:
        from amcl_fast.data import Augmentation, ContrastiveLoader, EvaluationLoader
        from amcl_fast.data.graph import Output
        from amcl_fast.data.loader.contrastive import SingleViewLoader

        output = Output(size=8, batch_size=BATCH, num_threads=2)
        if self.name == "evaluation":
            return EvaluationLoader(images, output, on_bad_file=self.bad.__setitem__)
        views = [Augmentation.from_letters("ae")] * (2 if self.name == "training" else 1)
        loader = ContrastiveLoader(images, views, output, on_bad_file=self.bad.__setitem__)
        return loader if self.name == "training" else SingleViewLoader(loader)

    def next(self) -> list[int]:
        """The numbers of the images of the next batch; the images are looked at."""
        images, labels = next(self._batches)
        views = images if isinstance(images, tuple) else (images,)
        assert all(view.isfinite().all() and view.shape[0] == len(labels) for view in views)
        self._number += 1
        self._last = int(labels[-1])
        return labels.tolist()

    def victim(self, place: int) -> int:
        """The number of the image at `place` of a batch that nobody has begun to read."""
        if self.name == "evaluation":
            return self._last + 1 + BATCH * (AHEAD - 1) + place
        return self._order[self._number + AHEAD][place]

    def meet(self, kind: str, place: str) -> str:
        """Damage a file, go on until it has been met and say what happened."""
        number = self.victim(PLACES[place])
        path = self.files[number]
        _KINDS[kind](path)
        seen = [label for _ in range(AHEAD + 1) for label in self.next()]
        if str(path) in self.bad:
            assert number not in seen
            return f"listed: {self.bad[str(path)]}"
        assert number in seen
        return "decoded"


_KINDS = kinds()


def walk(loader: str, folder: Path, chosen: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """All kinds and places, in one process."""
    # What an evaluation leaves out moves all that follows.
    stage = Stage(loader, folder, len(chosen) * (AHEAD + 1) + len(chosen) // BATCH + AHEAD + 2)
    stage.next()
    for kind, place in chosen:
        yield kind, place, stage.meet(kind, place)


def each(loader: str, folder: Path, chosen: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Every kind and place in a process of its own."""
    import torch  # noqa: F401, once for all

    import amcl_fast.data.loader.contrastive  # noqa: F401

    for number, (kind, place) in enumerate(chosen):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            outcome = "?"
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                signal.alarm(HANGS)
                (outcome,) = (found for _, _, found in walk(loader, folder / str(number), [(kind, place)]))
            except BaseException as error:
                outcome = f"raised: {type(error).__name__}: {error}".splitlines()[0]
            os.write(writing, outcome.encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            outcome = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGALRM:
            outcome = "hangs"
        elif code:
            outcome = f"ends with {signal.Signals(-code).name if code < 0 else code}"
        yield kind, place, outcome


def decoder_needs_guard(bad: bytes = bytes(5000), attempts: int = 5) -> bool:
    """Whether `bad` bytes, which DALI cannot parse, still end a process whose decoder meets them in a batch.

    Raises:
        RuntimeError: it cannot be tried out.
    """
    script = """
import sys
import numpy as np
from nvidia.dali import fn, pipeline_def
sys.path.insert(0, {here!r})
from tests.helpers.damage import JPEG
good, bad = (np.frombuffer(content, np.uint8) for content in (JPEG, {bad!r}))
batches = iter([[good] * 64] * 3 + [[good] * place + [bad] + [good] * (63 - place) for place in range(0, 64, 3)])

@pipeline_def(batch_size=64, num_threads=4, device_id=None)
def graph():
    encoded = fn.external_source(source=lambda _: next(batches), batch=True)
    return fn.decoders.image(encoded).shape()

while True:
    pipeline = graph()
    try:
        while True:
            pipeline.run()
    except RuntimeError:
        pass
    except StopIteration:
        break
"""
    for _ in range(attempts):
        command = [sys.executable, "-c", script.format(here=str(Path(__file__).resolve().parents[2]), bad=bad)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode > 0:
            raise RuntimeError(done.stderr)
        if done.returncode < 0:
            return True
    return False


def main(arguments: list[str]) -> None:
    """See above."""
    if arguments == ["decoder"]:
        print("the guard is needed" if decoder_needs_guard() else "no crash: the guard may go")
        return
    mode, loader, folder = arguments[:3]
    chosen = [tuple(case.split("@")) for case in arguments[3:]] or cases()
    for kind, place, outcome in {"walk": walk, "each": each}[mode](loader, Path(folder), chosen):
        print(json.dumps({"kind": kind, "place": place, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
