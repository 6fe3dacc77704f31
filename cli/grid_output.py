"""The tables that `dualsd grid` prints."""

from collections.abc import Iterator, Sequence

from cli.output import human_bytes, print_disk, print_table, say
from cli.table_text import Block
from featstore.pipeline.grid import GridCost
from featstore.store.keys import StoreLocation
from matcher.configuration import Configuration, MatchSettings
from matcher.grid import GridScores, Winner, timestep_map, weights_of, winners
from matcher.pck import Average
from matcher.statistics import Interval

ALPHA = 0.1
"""The alpha of the printed map of two layers, where it is asked for: that of the report's model selection."""

WIDEST = 12
"""Timesteps of the printed map of two layers, at most; larger ones are listed from the top."""

LISTED = 10


def print_cost(cost: GridCost, store: StoreLocation) -> None:
    """What it takes, before it starts."""
    maps = cost.maps
    say(
        f"{cost.images} images: {maps.encode} to encode (VAE passes), {maps.passes} UNet passes; peak memory about "
        f"{human_bytes(cost.peak_bytes)} besides the networks; {human_bytes(maps.bytes_to_write)} in "
        f"{maps.files_to_write} files to write"
    )
    if maps.bytes_to_write:
        print_disk(store, maps.bytes_to_write)


def print_scores(scores: GridScores, average: Average) -> None:
    """For each readout and settings, a table of single layers and one of layers together."""
    for block in score_blocks(scores, average):
        print_block(block)


def print_block(block: Block) -> None:
    """On stdout."""
    print_table(block.title, block.header, block.rows, block.left_columns)


def score_blocks(scores: GridScores, average: Average) -> Iterator[Block]:
    """For each readout and settings, a table of single layers and, where there is one, of layers together."""
    for settings in settings_of(scores):
        for readout in scores.readouts:
            yield _alone(scores, average, readout, settings)
            yield from _fused(scores, average, readout, settings)


def _alone(scores: GridScores, average: Average, readout: str, settings: MatchSettings) -> Block:
    """One layer: a row a timestep, a column a layer and alpha, the best of each column marked."""
    percent = 100 * scores.pck(average)[:, scores.readouts.index(readout)]  # (configurations, alphas)
    members = [index for index, entry in _of(scores, settings) if len(entry.layers) == 1]
    layers = list(dict.fromkeys(scores.configurations[index].layers[0].layer for index in members))
    timesteps = list(dict.fromkeys(scores.configurations[index].layers[0].timestep for index in members))
    header, columns = ["t"], []
    for layer in layers:
        own = [index for index in members if scores.configurations[index].layers[0].layer == layer]
        for row, alpha in enumerate(scores.alphas):
            header.append(f"layer {layer} @{alpha:g}")
            columns.append(_marked([percent[index, row] for index in own]))
    rows = tuple((str(timestep), *values) for timestep, *values in zip(timesteps, *columns, strict=True))
    return Block(_title("One layer", readout, average, scores, settings), tuple(header), rows)


def _fused(scores: GridScores, average: Average, readout: str, settings: MatchSettings) -> Iterator[Block]:
    """Layers together: of two, a map over their timesteps in their best weighting; of more, or of many timesteps, the
    best ones."""
    members = [index for index, entry in _of(scores, settings) if len(entry.layers) > 1]
    if not members:
        return
    alpha = shown_alpha(scores)
    values = 100 * scores.pck(average)[:, scores.readouts.index(readout), scores.alphas.index(alpha)]
    best = max(members, key=lambda index: values[index])
    layers, weights = scores.configurations[best].layers, weights_of(scores.configurations[best])
    name = " + ".join(f"layer {layer.layer} x {layer.weight:.3g}" for layer in layers)
    grid = timestep_map(scores, settings, weights, values) if len(layers) == 2 else None
    if grid is None or len(grid.columns) > WIDEST:
        ranked = sorted(members, key=lambda index: -values[index])[:LISTED]
        listed = tuple((scores.configurations[index].name, f"{values[index]:.2f}") for index in ranked)
        title = _title("Layers together, the best", readout, average, scores, settings)
        yield Block(title, ("configuration", f"@{alpha:g}"), listed)
        return
    flat = iter(_marked(grid.values.flatten().tolist()))
    rows = tuple((str(step), *(next(flat) for _ in grid.columns)) for step in grid.rows)
    header = (f"t of layer {layers[0].layer} \\ {layers[1].layer}", *map(str, grid.columns))
    yield Block(_title(f"{name}, PCK@{alpha:g}", readout, average, scores, settings), header, rows)


def print_winners(scores: GridScores, average: Average, command: str, chose_nothing: bool) -> None:
    """The best configuration a readout and alpha with its interval, its lead over the second, and what that is worth.
    command: the `dualsd eval` to which the configuration is added. chose_nothing: whether that is of other pairs."""
    found = winners(scores, average)
    print_block(winners_block(scores, average, found))
    if len(scores.configurations) == 1:
        return
    say(caution(scores, chose_nothing))
    say(f"  {command}{eval_options(scores.configurations[shown_winner(scores, found).best])}")


def winners_block(scores: GridScores, average: Average, found: Sequence[Winner]) -> Block:
    """A row a readout and alpha."""
    rows = tuple(
        (
            winner.readout,
            f"{winner.alpha:g}",
            full_name(scores, winner.best),
            spell(winner.pck),
            "" if winner.second is None else full_name(scores, winner.second),
            "" if winner.lead is None else spell(winner.lead),
        )
        for winner in found
    )
    return Block(
        f"The best of {len(scores.configurations)} configurations, {average.value} average, percent "
        "[95 % interval, images resampled]",
        ("readout", "alpha", "best", "PCK", "second", "lead over the second, paired"),
        rows,
        left_columns=3,
    )


def caution(scores: GridScores, chose_nothing: bool) -> str:
    """What the best of many is worth. chose_nothing: whether the command that follows is of other pairs."""
    return (
        f"The best of {len(scores.configurations)} was chosen on these very pairs: its PCK is too high an estimate, "
        "and neither interval knows of the choice. A lead whose interval holds 0 is none. Report it on pairs that "
        f"chose nothing{':' if chose_nothing else ', where there are any; on these:'}"
    )


def shown_winner(scores: GridScores, found: Sequence[Winner]) -> Winner:
    """The one of the first readout at the alpha that is shown where only one can be."""
    alpha = shown_alpha(scores)
    return next(winner for winner in found if winner.alpha == alpha)


def eval_options(configuration: Configuration) -> str:
    """The options of `dualsd eval` that name a configuration."""
    layers, settings = configuration.layers, configuration.settings
    names, steps = (
        ",".join(parts) for parts in zip(*((layer.layer, str(layer.timestep)) for layer in layers), strict=True)
    )
    text = f" --layers {names} --t {steps}"
    if len(layers) > 1:
        text += f" --weights {','.join(f'{layer.weight:.6g}' for layer in layers)}"
    default = MatchSettings(settings.image_size)
    if settings.geometry is not default.geometry:
        text += f" --geometry {settings.geometry.value}"
    if settings.upsample != default.upsample:
        text += f" --upsample {settings.upsample}x"
    if settings.upsample_align is not settings.geometry:
        text += f" --upsample-align {settings.upsample_align.value}"
    return text


def full_name(scores: GridScores, index: int) -> str:
    """A configuration's name, with its settings where the grid has several."""
    configuration = scores.configurations[index]
    settings = configuration.settings
    if len(settings_of(scores)) == 1:
        return configuration.name
    return f"{configuration.name}, {settings.geometry.value}, {settings.upsample}x"


def settings_of(scores: GridScores) -> list[MatchSettings]:
    """The settings that occur, in order."""
    return list(dict.fromkeys(entry.settings for entry in scores.configurations))


def shown_alpha(scores: GridScores) -> float:
    """The alpha of what can show only one."""
    return ALPHA if ALPHA in scores.alphas else scores.alphas[len(scores.alphas) // 2]


def _of(scores: GridScores, settings: MatchSettings) -> Iterator[tuple[int, Configuration]]:
    for index, entry in enumerate(scores.configurations):
        if entry.settings == settings:
            yield index, entry


def _marked(values: Sequence[float]) -> list[str]:
    """Percent with two decimals, the largest with a star."""
    largest = max(values)
    return [f"{value:.2f}{'*' if value == largest else ' '}" for value in values]


def _title(what: str, readout: str, average: Average, scores: GridScores, settings: MatchSettings) -> str:
    several = f", {settings.geometry.value}, {settings.upsample}x" if len(settings_of(scores)) > 1 else ""
    return f"{what}: PCK in percent, {readout}, {average.value} average{several} (* the best)"


def spell(interval: Interval) -> str:
    """`41.72 [39.10, 44.30]`, in percent."""
    # + 0.0: a zero that was rounded from below would be spelled -0.00
    mean, low, high = (round(100 * value, 2) + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
