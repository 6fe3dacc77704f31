"""What a reader of a reproduced table has to know."""

from collections.abc import Mapping

from cli.reproduction.layout import OUTSIDE
from cli.reproduction.paper import contradictions
from cli.reproduction.plan import DEMO, Plan


def notes(plan: Plan, model: str, image_size: int, train_steps: int | None, failures: Mapping[str, str]) -> list[str]:
    """Sentences, the weightiest first. model: by the name it was asked for. image_size: in pixels. train_steps: to
    which trainings were cut short, None for their own length. failures: a sentence a training or cell that could not
    be run."""
    found = [
        f"PCK in percent, model {model}, images of {image_size} pixels, every other setting as `dualsd recipes NAME` "
        "shows it; 95 % intervals, images resampled; difference: ours minus the paper's, "
        f"{OUTSIDE} where the paper's lies outside our interval.",
        *stand_ins(plan),
    ]
    if model == DEMO:
        found.append(
            "The model is the demo's, drawn pictures are all it knows: its figures say nothing of Stable Diffusion's."
        )
    if plan.trainings and train_steps is not None:
        found.append(f"Trainings took {train_steps} steps, as --train-steps says, not their own length.")
    elif DEMO in plan.datasets and plan.trainings:
        found.append("Trainings on the demo are as short as `dualsd train` makes them there.")
    found += missing(plan)
    found += [f"{name} was not run: {sentence}" for name, sentence in failures.items()]
    return [*found, *contradictions(plan.table)]


def stand_ins(plan: Plan) -> list[str]:
    """What the demo stands for."""
    found = []
    sets = dict.fromkeys(
        row.trained_on
        for row in plan.rows
        for column in plan.columns
        if (cell := plan.cells.get((row.name, column.dataset))) is not None
        and cell.training is not None
        and row.trained_on not in (None, cell.training.dataset)
    )
    if sets:
        found.append(
            f"The demo's own trn stands for the training set(s) {', '.join(map(str, sets))}: prompts are trained on "
            "it once, rows that differ in the training set alone show the same figures, and no difference is taken."
        )
    found += [
        f"The demo's own test split stands for {', '.join(column.stands_for)}: the paper's figures beside it are of "
        f"{column.stands_for[0]}, to show which rows it has ahead, and no difference is taken."
        for column in plan.columns
        if column.is_stand_in
    ]
    return found


def missing(plan: Plan) -> list[str]:
    """Which cells lack which datasets."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for column in plan.columns:
        own = {row.name: plan.missing.get((row.name, column.dataset)) for row in plan.rows}
        if all(names is not None and column.dataset in names for names in own.values()):
            lacking.setdefault((column.dataset,), []).append(f"all rows on {column.dataset}")
            continue
        for row, names in own.items():
            if names is not None:
                lacking.setdefault(names, []).append(f"{row} on {column.dataset}")
    return [f"Not run, for want of {' and '.join(names)}: {', '.join(cells)}." for names, cells in lacking.items()]
