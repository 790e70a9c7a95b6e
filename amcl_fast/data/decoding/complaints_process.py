"""The process behind `complaints`: lines come in, and those that are none go out."""

import os
import re
from contextlib import suppress

from amcl_fast.data.processes.serving import ignore_signals

# Of pixels that are not those that were saved.
PIXELS = re.compile(
    rb"Corrupt JPEG data|Premature end of |Inconsistent progression|Invalid SOS parameters|Unsupported marker type"
    rb"|libpng warning: (IDAT|PLTE|tRNS|Extra|Too much)"
)
# Of what does not show in the pixels, or of images that cannot be decoded, which are told of elsewhere.
_OTHERS = (
    rb"libpng (warning|error): |Warning: unknown JFIF|Unknown Adobe color transform|Unsupported JPEG process"
    rb"|Unsupported color conversion|Invalid (component ID|progressive|JPEG file structure)|Bogus |Not a JPEG file"
    rb"|(Huffman|Quantization|Arithmetic) table 0x|Improper call to JPEG|Input file read error|Empty JPEG image"
    rb"|JPEG datastream contains no image|Too many color components|Maximum supported image dimension"
)
OTHERS = re.compile(_OTHERS + rb"|.*\[[a-z_]+_decoder\] .*Could not decode|\[ WARN:.*grfmt_")
MARK = b"\1amcl-fast\n"
HEARD, MARKED = b".", b"!"
_OF_PNG = b"libpng "
_BEGINNINGS = re.compile(b"|".join([re.escape(MARK.rstrip()), PIXELS.pattern, _OTHERS]))


class Lines:
    """Tells apart what several threads have printed: libpng prints a line and its end one after the other."""

    def __init__(self) -> None:
        self._ends = 0  # of libpng's lines, that are still to come

    def split(self, line: bytes) -> list[bytes]:
        """The lines that a line is made of."""
        if not line and self._ends:
            self._ends -= 1
            return []
        starts = [0]
        while line.startswith(_OF_PNG, starts[-1]) and (found := _BEGINNINGS.search(line, starts[-1] + len(_OF_PNG))):
            starts.append(found.start())
        self._ends += len(starts) - 1
        return [line[start:end] for start, end in zip(starts, [*starts[1:], len(line)], strict=True)]


def main(descriptors: list[str]) -> None:
    """Serve until the other side ends."""
    ignore_signals()
    lines, shown, answers = map(int, descriptors)
    os.set_blocking(answers, False)

    def tell(descriptor: int, content: bytes) -> None:
        with suppress(OSError):  # nobody asks for answers, or the terminal is gone
            os.write(descriptor, content)

    rest, of_threads = b"", Lines()
    while part := os.read(lines, 1 << 16):
        *whole, rest = (rest + part).split(b"\n")
        for line in (one for many in whole for one in of_threads.split(many)):
            if line + b"\n" == MARK:
                tell(answers, MARKED)
            elif PIXELS.match(line):
                tell(answers, HEARD)
            elif not OTHERS.match(line):
                tell(shown, line + b"\n")
    tell(shown, rest)
