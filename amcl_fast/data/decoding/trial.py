"""Decode doubtful images in a process of its own, which may die of them."""

import logging
import os
import re
import site
from contextlib import suppress
from typing import Any

import numpy as np

from amcl_fast.data.decoding.complaints_process import PIXELS
from amcl_fast.data.processes.serving import serve
from amcl_fast.data.processes.worker import Worker, WorkerError

log = logging.getLogger(__name__)

_START_SECONDS = 300.0  # a network folder of libraries, a busy machine
_DECODE_SECONDS = 60.0
_PIXEL = b"P6 1 1 255\n\0\0\0"
_DECODED = b""
_COMPLAINT = b"\0"  # how what a decoder says of an image begins that it decodes
_OF_MEMORY = re.compile(rb"memory|alloc", re.IGNORECASE)
NOT_DECODED = "it cannot be read and decoded"
_NOT_ALIVE = "the process that decodes it does not live"


def of_decoding(reason: str) -> bool:
    """Whether a file is bad because of what decoding has told, not reading."""
    return NOT_DECODED in reason or _NOT_ALIVE in reason


class Trial:
    """Tells whether DALI decodes an image, without risk. Its process starts when it is first needed."""

    def __init__(self, device: str = "cpu", device_id: int | None = None) -> None:
        """Make a trial.

        Args:
            device: where DALI decodes, "cpu" or "gpu"; where the GPU lets no second process in, the CPU tries.
            device_id: the GPU's index.
        """
        self._devices = [("cpu", None)] if device == "cpu" else [(device, device_id), ("cpu", None)]
        self._worker: Worker | None = None
        self._on_cpu: Trial | None = None

    def __call__(self, image: np.ndarray) -> str | None:
        """Why a (bytes,) uint8 encoded image cannot be decoded, None if it can.

        Raises:
            OSError: DALI decodes nothing at all in a new process.
        """
        try:
            answer = self._answer(image)
        except WorkerError as error:
            return f"{_NOT_ALIVE}: {error}"
        if answer == _DECODED or answer.startswith(_COMPLAINT):
            return None
        if self._devices[0][0] != "cpu" and _OF_MEMORY.search(answer):
            # The GPU is full, which says nothing of the image.
            self._on_cpu = self._on_cpu or Trial()
            return self._on_cpu(image)
        return NOT_DECODED

    def complaint(self, image: np.ndarray) -> str | None:
        """What the decoder says of the damaged pixels of an image that it decodes; None if that is nothing.

        Raises:
            OSError: DALI decodes nothing at all in a new process.
        """
        with suppress(WorkerError):
            answer = self._answer(image)
            if answer.startswith(_COMPLAINT):
                return answer.removeprefix(_COMPLAINT).decode(errors="replace")
        return None

    def _answer(self, image: np.ndarray) -> bytes:
        if self._worker is None:
            self._worker = self._start()
        try:
            self._worker.send(image.data)
            return self._worker.receive(_DECODE_SECONDS)
        except BaseException:  # an answer that nobody has waited for would be taken for the next image's
            self._worker.close()
            self._worker = None
            raise

    def close(self) -> None:
        """End the process; the next call starts another."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
        if self._on_cpu is not None:
            self._on_cpu.close()

    def _start(self) -> Worker:
        problem = "no device"
        while self._devices:
            device, device_id = self._devices[0]
            worker = Worker("decoding.trial", [device, *([] if device_id is None else [str(device_id)])])
            try:
                worker.send(_PIXEL)
                answer = worker.receive(_START_SECONDS)
                if answer == _DECODED:
                    return worker
                problem = answer.decode()
            except WorkerError as error:
                problem = str(error)
            worker.close()
            if len(self._devices) == 1:
                break
            log.warning(
                "doubtful images are tried out on the CPU, for a second process cannot use the GPU: %s", problem
            )
            del self._devices[0]
        raise OSError(f"doubtful images cannot be tried out, since DALI does not work in a new process: {problem}")


def main(arguments: list[str]) -> None:
    """Serve a `Trial`: an image in, nothing out, or DALI's error, or what a decoder printed of damaged pixels."""
    site.main()  # helpers start without, but DALI is no small program
    printed = os.memfd_create("printed")
    os.dup2(printed, 2)
    pipeline: Any = None
    image = np.empty(0, np.uint8)

    def source(_: int) -> list[np.ndarray]:
        return [image]

    def answer(request: bytes) -> bytes:
        nonlocal pipeline, image
        os.ftruncate(printed, 0)
        os.lseek(printed, 0, os.SEEK_SET)
        try:
            from amcl_fast.data.graph import Output, decoding_pipeline

            image = np.frombuffer(request, np.uint8)
            if pipeline is None:
                output = Output(
                    size=1,
                    batch_size=1,
                    device="gpu" if arguments[0] == "gpu" else "cpu",
                    device_id=int(arguments[1]) if len(arguments) > 1 else None,
                    num_threads=1,
                    prefetch=1,
                )
                pipeline = decoding_pipeline(source, output)
            pipeline.run()
        except Exception as error:
            pipeline = None
            return str(error).strip().encode() or b"error"
        lines = os.pread(printed, os.fstat(printed).st_size, 0).splitlines()
        complaint = next((line for line in lines if PIXELS.match(line)), None)
        return _DECODED if complaint is None else _COMPLAINT + complaint

    serve(answer)
