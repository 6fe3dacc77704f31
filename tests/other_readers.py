"""Reads a store with libraries that know nothing of dualsd; run by `.venv/readers`, see `test_other_readers`.

    python other_readers.py zarr|xarray|tensorstore STORE OUT.npz ARRAY:ROW...

What a library reads is saved under `ARRAY:ROW`, and nothing where it raises. A row of -1 is all of an array.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np


def read(library: str, store: str, path: str, row: int) -> Any:
    """A row of an array, or all of it."""
    place: Any = slice(None) if row < 0 else row
    if library == "zarr":
        import zarr

        return zarr.open_group(store, mode="r")[path][place]
    if library == "xarray":
        import xarray

        group, _, name = path.rpartition("/")
        found = xarray.open_zarr(store, group=group or None, consolidated=False, zarr_format=3)
        return found[name][place].values
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{Path(store).resolve()}/{path}"}}
    return tensorstore.open(spec, read=True).result()[place].read().result()


if __name__ == "__main__":
    library, store, out, *wanted = sys.argv[1:]
    found = {}
    for what in wanted:
        path, _, row = what.rpartition(":")
        try:
            found[what] = np.asarray(read(library, store, path, int(row)))
        except Exception as error:
            print(what, type(error).__name__, error)
    np.savez(out, **found)
