"""NumPy arrays from Arrow arrays and back, on the same memory.

`pa.array` and `to_numpy` would do, but they load pandas where it is installed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def as_numpy(values: pa.Array) -> np.ndarray:
    """Numbers, or true and false, without nulls, as an array."""
    if pa.types.is_boolean(values.type):
        return as_numpy(values.cast(pa.uint8())).view(bool)
    kind = np.dtype(values.type.to_pandas_dtype())
    data = values.buffers()[1]
    if data is None or not len(values):
        return np.zeros(0, kind)
    return np.frombuffer(data, kind, len(values), values.offset * kind.itemsize)


def as_arrow(values: np.ndarray) -> pa.Array:
    """Numbers in one dimension as an array on the same memory."""
    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def buffers(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (texts + 1,) int64 from 0 on, and the bytes (uint8) that they point into."""
    _, offsets, data = texts.buffers()
    if offsets is None or not len(texts):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    places = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    whole = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    return places - places[0], whole[places[0] : places[-1]]


def as_texts(values: list[str]) -> pa.LargeStringArray:
    """Texts without nulls. Raises UnicodeEncodeError for halves of characters."""
    data = [value.encode() for value in values]
    offsets = np.zeros(len(data) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, data), np.int64, len(data)), out=offsets[1:])
    return pa.LargeStringArray.from_buffers(
        len(data), pa.py_buffer(offsets), pa.py_buffer(b"".join(data))
    )
