import threading

import pytest

from matcher.maps import read_ahead


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_in_order(ahead: int) -> None:
    assert list(read_ahead(range(20), lambda key: key**2, ahead)) == [(key, key**2) for key in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 0], lambda key: 1 // key, ahead))


@pytest.mark.parametrize("ahead", [1, 3, 7])
def test_how_far(ahead: int) -> None:
    """While the first is looked at, so many more are loaded, and no more."""
    loaded, enough = [], threading.Semaphore(0)

    def load(key: int) -> int:
        loaded.append(key)
        enough.release()
        return key

    values = read_ahead(range(20), load, ahead)
    next(values)
    for _ in range(ahead + 1):
        assert enough.acquire(timeout=300)
    assert sorted(loaded) == list(range(ahead + 1))


def test_what_is_not_needed_any_more_is_not_loaded() -> None:
    """After an error, and where nobody takes what comes: threads end what they have begun, and no more."""
    begun, go = [], threading.Event()

    def load(key: int) -> float:
        begun.append(key)
        if key:
            assert go.wait(timeout=300)
        return 1 / key

    values = read_ahead(range(100), load, 50)
    threading.Timer(0.2, go.set).start()
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert len(begun) < 50
    begun.clear()
    values = read_ahead(range(1, 100), load, 50)
    next(values)
    go.clear()
    threading.Timer(0.2, go.set).start()
    values.close()
    assert len(begun) < 50
    assert not [own for own in threading.enumerate() if own.name.startswith("read-ahead")]


def test_not_at_all() -> None:
    """Nothing is loaded before it is asked for, and in no other thread."""
    threads = []
    values = read_ahead(range(3), lambda key: threads.append((key, threading.current_thread())), 0)
    next(values)
    assert threads == [(0, threading.current_thread())]
