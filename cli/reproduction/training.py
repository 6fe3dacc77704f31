"""Learning the prompts that a table's cells ask for, as `dualsd train` does; what is learned is not learned again."""

from typing import Any

from cli.output import say
from cli.recipe_options import Options, to_command
from cli.reproduction.plan import Training
from cli.reproduction.workplace import Workplace
from cli.train_settings import check_resumed, published, typed_settings, with_typed
from featstore.errors import TuningError
from featstore.tuning.run_folder import RunFolder, identity_of
from featstore.tuning.settings import TuningSettings

NUMBERS = {"lr": "rate", "network_lr": "network_rate", "val_pairs": "validation_pairs"}
"""Options of `train` whose settings have another name."""

TEXTS = ("mode", "layers", "t", "weights", "noise", "geometry", "upsample_align")
"""Options of `train` that are read, not numbers."""


def open_run(place: Workplace, training: Training, pairs: int) -> RunFolder | None:
    """A training's run, finished or not; None where it has not begun. pairs: of the training set. Raises `TuningError`
    where a run of that name has other settings, or was trained on something else."""
    path = place.run_path(training, settings_of(place, training, pairs).steps)
    if not path.exists():
        return None
    run = RunFolder.open(path)
    if run.identity != identity_of(place.header(training.dataset)):
        raise TuningError(
            f"{path} was trained on another model, size or dataset than is asked for now: take another --work folder."
        )
    check_resumed(run.settings, _typed(place, training, pairs), path)
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
        train(**arguments, gradient_checkpointing=place.means.gradient_checkpointing)
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
    typed = _typed(place, training, pairs) | {"accumulate": place.means.accumulate}
    return with_typed(published(typed, training.dataset, pairs, place.model, place.image_size), typed)


def _typed(place: Workplace, training: Training, pairs: int) -> dict[str, Any]:
    options: dict[str, Any] = place.training_options(training, pairs)
    numbers = {NUMBERS.get(name, name): value for name, value in options.items() if name not in TEXTS}
    texts = {name: options[name] for name in TEXTS}
    return typed_settings(place.image_size, **texts, val_t=None, numbers=numbers)
