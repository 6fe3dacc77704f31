"""What lies in a store, by name and size, wherever that is."""

from pathlib import Path

from featstore.store.bucket import StoredObject, open_bucket
from featstore.store.location import StoreLocation


def folders(store: StoreLocation, pattern: str) -> list[str]:
    """Paths of the folders that a pattern such as `maps/*` names, sorted. On object storage a request a folder above
    them, whatever they hold."""
    if isinstance(store, Path):
        return [folder.relative_to(store).as_posix() for folder in sorted(store.glob(pattern)) if folder.is_dir()]
    bucket = open_bucket(store)
    first, *rest = pattern.split("/*")
    found = [first]
    for _ in rest:
        found = [below for folder in found for below in bucket.level(folder)[1]]
    return sorted(found)


def objects(store: StoreLocation, path: str = "") -> list[StoredObject]:
    """All files or objects below a path, sorted; all of the store where it is empty."""
    if isinstance(store, Path):
        files = [file for file in sorted((store / path).rglob("*")) if file.is_file()]
        return [
            StoredObject(file.relative_to(store).as_posix(), stat.st_size, stat.st_mtime)
            for file in files
            for stat in [file.stat()]
        ]
    return sorted(open_bucket(store).objects(path), key=lambda found: found.path)


def names(store: StoreLocation, path: str) -> list[str]:
    """Names of the files or objects right below a path; none where it is not there."""
    if isinstance(store, Path):
        folder = store / path
        return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return sorted(key.rpartition("/")[2] for key in open_bucket(store).level(path)[0])


def delete(store: StoreLocation, path: str) -> None:
    """Delete a file or an object, be it there or not."""
    if isinstance(store, Path):
        (store / path).unlink(missing_ok=True)
    else:
        open_bucket(store).delete([path])
