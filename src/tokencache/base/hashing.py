"""Keys, and digests of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3

KEY_DIGITS = 32
HASHED_BYTES = 2**20  # of a file that is hashed, at a time


def key_of(made_of: Any) -> str:
    """The key of what decides some bytes: BLAKE3 of its canonical JSON, 128 bits in hex."""
    text = json.dumps(made_of, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_DIGITS]


def hash_file(path: str | Path) -> str:
    """BLAKE3 of a file's bytes, in hex. Not mapped into memory: a file that is cut short
    meanwhile would end the process."""
    hasher, block = blake3(), memoryview(bytearray(HASHED_BYTES))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            hasher.update(block[:size])
    return hasher.hexdigest()
