"""Learning the prompts that a table's cells ask for, as `dualsd train` does; what is learned is not learned again."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cli.options import read_typed
from cli.output import say
from cli.recipe_options import Options, to_command
from cli.reproduction.plan import Training
from cli.reproduction.workplace import Workplace
from featstore.config import TrainConfig, fields_of, from_json
from featstore.errors import TuningError
from featstore.tuning.run_folder import RunFolder, identity
from featstore.tuning.settings import TuningSettings, resumed
from featstore.tuning.settings import settings_of as tuning_settings


def open_run(place: Workplace, training: Training, pairs: int) -> RunFolder | None:
    """A training's run, finished or not; None where it has not begun. pairs: of the training set. Raises `TuningError`
    where a run of that name has other settings, or was trained on something else."""
    path = place.run_path(training, settings_of(place, training, pairs).steps)
    if not path.exists():
        return None
    run = RunFolder.open(path)
    if run.identity != identity(place.header(training.dataset)):
        raise TuningError(
            f"{path} was trained on another model, size or dataset than is asked for now: take another --work folder."
        )
    resumed(run.settings, _config(place, training, pairs), run.settings.dtype, path)
    return run


def is_finished(run: RunFolder | None) -> bool:
    """Whether all its steps are done."""
    return run is not None and run.is_finished


def learn(place: Workplace, training: Training, pairs: int) -> RunFolder:
    """A training's finished run, begun or gone on with where need be; its store must be there. Raises what
    `dualsd train` raises."""
    from cli.train import train

    run = open_run(place, training, pairs)
    if run is None or not is_finished(run):
        arguments = train_arguments(place, training, pairs, run)
        say("", f"$ {to_command('train', arguments)}")
        train(_parsed(arguments | {"gradient_checkpointing": place.means.gradient_checkpointing}))
    return RunFolder.open(place.run_path(training, settings_of(place, training, pairs).steps))


def train_arguments(place: Workplace, training: Training, pairs: int, run: RunFolder | None) -> dict[str, Any]:
    """All options of `dualsd train` for a training. run: where it has begun."""
    options, means = place.training_options(training, pairs), place.means
    path = place.run_path(training, settings_of(place, training, pairs).steps)
    begun: Options = {"name": path.name, "runs": path.parent} if run is None else {"resume": path}
    return {
        **options,
        **begun,
        "store": place.store_path(training.dataset),
        "accumulate": means.accumulate,
        "dino": means.dino,
        "device": means.device,
        "dtype": means.dtype,
        "batch_size": means.batch_size,
    }


def settings_of(place: Workplace, training: Training, pairs: int) -> TuningSettings:
    """What `train` makes of its options."""
    config = replace(_config(place, training, pairs), accumulate=place.means.accumulate)
    return tuning_settings(config, training.dataset, pairs, place.model, place.image_size, "float32")


def _config(place: Workplace, training: Training, pairs: int) -> TrainConfig:
    return _parsed(place.training_options(training, pairs))


def _parsed(options: Mapping[str, Any]) -> TrainConfig:
    """Options of `train` as its config has them."""
    known = {field.flag.removeprefix("--").replace("-", "_"): field for field in fields_of(TrainConfig)}
    given = {known[option]: value for option, value in options.items() if value is not None}
    return from_json(TrainConfig, {field.name: read_typed(field, own) for field, own in given.items()}, "train", str)
