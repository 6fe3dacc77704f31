"""What each value of a recipe may be: readers that give it as Python's own, or raise ValueError with what is known."""

from collections.abc import Callable
from typing import Any

Reader = Callable[[Any], Any]


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("a whole number from 1 on")
    return value


def _positive(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError("a positive number")
    return float(value)


def _one_of(*names: str) -> Reader:
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError(" or ".join(map(repr, names)))
        return str(value)

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _list_of(what: str, is_one: Callable[[Any], bool], convert: Callable[[Any], Any]) -> Reader:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value or not all(map(is_one, value)):
            raise ValueError(f"a list of {what}")
        return tuple(map(convert, value))

    return read


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_layer(value: Any) -> bool:
    return (type(value) is int and 1 <= value <= 4) or value == "dino"


_TIMESTEPS = _list_of("timesteps from 0 to 999", lambda value: type(value) is int and 0 <= value <= 999, int)
_GEOMETRY = _one_of("corners", "half-pixel")

READERS: dict[str, Reader] = {
    "model": _text,
    "image_size": _whole,
    "layers": _list_of("layers from 1 to 4 or 'dino'", _is_layer, str),
    "timesteps": _TIMESTEPS,
    "weights": _list_of("weights above 0", lambda value: _is_number(value) and value > 0, float),
    "upsample": _whole,
    "upsample_align": _GEOMETRY,
    "prompt": _one_of("text", "single", "class", "cpm"),
    "template": _text,
    "ensemble": _whole,
    "latents": _one_of("sample", "mean"),
    "readout": _one_of("nn", "bilinear", "softmax", "kernelsoftmax", "window", "pixel"),
    "average": _one_of("image", "point"),
    "geometry": _GEOMETRY,
    "frame": _one_of("resized", "original"),
    "alphas": _list_of("fractions of theta", lambda value: _is_number(value) and 0 < value <= 1, float),
    "dino": _text,
    "dino_size": _whole,
    "batch": _whole,
    "optimiser": _one_of("adam"),
    "rate": _positive,
    "network_rate": _positive,
    "length": _whole,
    "kernel": _whole,
    "beta": _positive,
    "noise": _one_of("cached", "fresh"),
    "draws": _whole,
    "selection": _one_of("nn PCK@0.1, image average, on val"),
    "validation_pairs": _whole,
    "epochs": _whole,
}
"""By name; a name means the same in training and in inference."""
