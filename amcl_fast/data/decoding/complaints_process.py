"""The process behind `complaints`: lines come in, and those that are none go out."""

import os
from contextlib import suppress

from amcl_fast.data.decoding.complaints import HEARD, MARK, MARKED, OTHERS, PIXELS, Lines
from amcl_fast.data.processes.serving import ignore_signals


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
