"""In which precision maps are kept on the disk, whatever they were computed in."""

from enum import Enum


class Stored(Enum):
    """The type of a map's values in its file; the value is its name in numpy and in `--stored`."""

    FLOAT16 = "float16"
    INT8 = "int8"
    """With one scale a channel and map: half the disk. See `featstore.store.row_encoding`."""
