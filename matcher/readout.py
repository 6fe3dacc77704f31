"""From correlations to target points: six readouts, see `matcher.configuration.Readout`."""

import torch
from torch import Tensor

from matcher.configuration import Correlations, Frame, Readout
from matcher.errors import MatchError


def nearest(correlation: Tensor) -> Tensor:
    """The cell of the largest correlation: (n, h, w) to (n, 2). Of equal ones the first in reading order; NaN where a
    correlation is none."""
    best = largest(correlation)
    return cells_of(best, (correlation.shape[-2], correlation.shape[-1])) + doubt(correlation, best)[:, None]


def doubt(correlation: Tensor, best: Tensor) -> Tensor:
    """0 where the largest correlation is finite, else NaN, (n,): argmax takes NaN for the largest, and gives its cell.
    best: what `largest` gives."""
    top = correlation.flatten(1).gather(1, best[:, None])[:, 0]
    return top - top


def check_channels(source: int, target: int) -> None:
    """Raise `MatchError` where a source's maps have other channels than the target's."""
    if source != target:
        raise MatchError(
            f"The source map has {source} channels and the target map {target}: both must come from the same layers of "
            "the same model."
        )


def check_predictions(positions: Tensor, readout: str, pair: str) -> None:
    """Raise `MatchError` for predictions (..., 2) that are not finite: scored, they would count as misses. Everything
    that predicts ends here. pair: what was matched with what."""
    if not positions.isfinite().all():
        raise MatchError(
            f"The points of {pair} have no match by {readout}: correlations of the two are not finite in "
            "float32; look for values in their maps that are not finite, or too large."
        )


def largest(correlation: Tensor) -> Tensor:
    """The number of the largest correlation in reading order, the first of equal ones: (n, h, w) to (n,)."""
    flat = correlation.flatten(1)
    # torch's argmax over rows takes several times numpy's on the CPU
    return torch.from_numpy(flat.numpy().argmax(axis=1)) if flat.device.type == "cpu" else flat.argmax(dim=1)


def cells_of(numbers: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Cells numbered in reading order, (...), as (x, y) on a map of `map_size` = (h, w), (..., 2), float32."""
    width = map_size[1]
    return torch.stack([numbers % width, numbers // width], dim=-1).float()


def blend_nearest(neighbours: Tensor, weights: Tensor) -> Tensor:
    """The nearest cells of a point's four integer neighbours, blended: neighbours (n, 4, h, w), weights (n, 4)
    summing to 1, to (n, 2)."""
    matched = nearest(neighbours.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, 2)
    return (matched * weights[..., None]).sum(dim=1)


def soft_argmax(correlation: Tensor, beta: float) -> Tensor:
    """The mean cell under softmax(correlation / beta): (n, h, w) to (n, 2)."""
    height, width = correlation.shape[-2:]
    top = correlation.flatten(1).amax(dim=1)[:, None, None]
    shares = ((correlation - top) / beta).exp_()  # (n, h, w), not yet divided by their sum
    across = shares @ torch.stack([torch.ones_like(_axis(width, shares)), _axis(width, shares)], dim=1)  # (n, h, 2)
    total, x = across.sum(dim=1).unbind(dim=1)
    y = across[..., 0] @ _axis(height, shares)
    return torch.stack([x / total, y / total], dim=1)


def kernel_soft_argmax(correlation: Tensor, beta: float, sigma: float, centre: Tensor | None = None) -> Tensor:
    """`soft_argmax` after the correlations (not the probabilities) were multiplied by a Gaussian of `sigma` cells
    centred on the largest one: (n, h, w) to (n, 2). centre: (n, 2), `nearest` of the correlations where it is known
    already."""
    dx, dy = offsets(correlation, nearest(correlation) if centre is None else centre)
    gaussian_x, gaussian_y = (torch.exp(-(offset**2) / (2 * sigma**2)) for offset in (dx, dy))
    return soft_argmax(correlation * gaussian_y[:, :, None] * gaussian_x[:, None, :], beta)


def window_soft_argmax(correlation: Tensor, beta: float, window: int, centre: Tensor | None = None) -> Tensor:
    """`soft_argmax` after the correlations more than `window` cells away from the largest one, in x or in y, were set
    to 0, as GeoAware-SC does (they still take part with exp(0)): (n, h, w) to (n, 2). centre: see
    `kernel_soft_argmax`."""
    dx, dy = offsets(correlation, nearest(correlation) if centre is None else centre)
    inside_x, inside_y = ((offset.abs() <= window).to(correlation) for offset in (dx, dy))
    return soft_argmax(correlation * inside_y[:, :, None] * inside_x[:, None, :], beta)


def integer_neighbours(cells: Tensor, map_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around each point and their bilinear weights: (n, 2) to (n, 4, 2) and (n, 4).

    Points are held inside the map of `map_size` = (h, w) first, as bilinear sampling with border padding does.
    """
    height, width = map_size
    last = torch.tensor([width - 1, height - 1], dtype=cells.dtype, device=cells.device)
    inside = cells.clamp(min=torch.zeros_like(last), max=last)
    low = inside.floor()
    high = torch.minimum(low + 1, last)
    share = inside - low  # (n, 2) in [0, 1)
    corners = torch.stack(
        [low, torch.stack([high[:, 0], low[:, 1]], 1), torch.stack([low[:, 0], high[:, 1]], 1), high], dim=1
    )
    right, down = share[:, 0], share[:, 1]
    weights = torch.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], dim=1)
    return corners, weights


def offsets(correlation: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """How far each column and row lies from the centre (n, 2): (n, w) and (n, h)."""
    height, width = correlation.shape[-2:]
    return _axis(width, correlation) - centre[:, :1], _axis(height, correlation) - centre[:, 1:]


def _axis(cells: int, like: Tensor) -> Tensor:
    return torch.arange(cells, dtype=like.dtype, device=like.device)


def nearest_pixels(points: Tensor, size: tuple[int, int]) -> Tensor:
    """The whole pixels (n, 2) of an image of `size` = (width, height) nearest to points (n, 2)."""
    last = torch.tensor([size[0] - 1, size[1] - 1], dtype=points.dtype, device=points.device)
    return (points + 0.5).floor().clamp(min=torch.zeros_like(last), max=last)


def _read_kernel(found: Correlations) -> Tensor:
    return kernel_soft_argmax(found.cosines, found.settings.beta, found.settings.sigma, found.nearest)


def _read_window(found: Correlations) -> Tensor:
    return window_soft_argmax(found.cosines, found.settings.window_beta, found.settings.window, found.nearest)


NN = Readout("nn", lambda found: found.nearest)

READOUTS = {
    known.name: known
    for known in (
        NN,
        Readout("bilinear", lambda found: blend_nearest(found.neighbours, found.shares), rows=4),
        Readout("softmax", lambda found: soft_argmax(found.cosines, found.settings.beta)),
        Readout("kernelsoftmax", _read_kernel),
        Readout("window", _read_window),
        Readout("pixel", lambda found: found.nearest, frame=Frame.ORIGINAL),
    )
}
"""SD4Match's four, GeoAware-SC's `window` and DIFT's `pixel`."""
