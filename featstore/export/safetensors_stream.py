"""A safetensors file larger than memory: its header needs shapes alone, then tensors follow one after the other.

safetensors' own writer takes all tensors at once; SPair-71k's maps of two layers are 32 GB.
"""

import json
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 8


def write_float16(
    stream: BinaryIO,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterator[NDArray[np.float16]],
    metadata: Mapping[str, str],
) -> None:
    """Write float16 tensors by name. arrays: one for each of `shapes`, of that shape and in that order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, shape in shapes.items():
        end = start + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for (name, shape), array in zip(shapes.items(), arrays, strict=True):
        assert array.shape == shape, f"{name} is of another shape than its layer's other maps"
        stream.write(np.ascontiguousarray(array, dtype="<f2").data)
