"""The position of a loader as a checkpoint holds it."""

import base64
import json
import zlib
from typing import Any

VERSION = 2


def pack(shards: list[Any]) -> str:
    """What is in a state for each process: hundreds, which say nearly the same, and thousands of bad files."""
    return base64.b64encode(zlib.compress(json.dumps(shards).encode())).decode()


def unpack(shards: str | list[Any]) -> list[Any]:
    """The reverse; earlier versions did not pack them."""
    if isinstance(shards, str):
        return json.loads(zlib.decompress(base64.b64decode(shards)))
    return [
        {**shard, "checkpoint": base64.b64decode(shard["checkpoint"]).decode("latin-1"), "bad": [*shard["bad"].items()]}
        for shard in shards
    ]
