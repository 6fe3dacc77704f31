"""`dualsd reproduce`: the report's tables, run and set beside its figures."""

from cli.options import DryRunOption, JsonOption, examples, taking
from featstore.config import ReproduceConfig
from matcher.errors import InputError

EXAMPLES = examples(
    "dualsd reproduce table5 --on demo --train-steps 50",
    "dualsd reproduce table5 --dataset-root data --dry-run",
    "dualsd reproduce table5 --dataset-root data --rows dift,dual-single@spair",
    "dualsd reproduce table3 --dataset-root data --rows dift,dift-50",
    "dualsd reproduce table1 --dataset-root data --rows dift,dino,sd-dino",
    "dualsd reproduce table5 --dataset-root data --on demo        (the demo in place of datasets that are not in data)",
)
FIGURE = "figure2"


def reproduce(config: ReproduceConfig, dry_run: DryRunOption = False, json: JsonOption = None) -> None:
    """Run a table's methods and print it beside the paper's figures; what it takes is said first.

    Stores are shared between rows, prompts are trained where they are needed, and what was done is not done again: the
    same command goes on. The table is also written as Markdown, LaTeX and JSON.
    """
    from cli.output import say
    from cli.reproduction.paper import DEMO, TABLES

    if config.what not in (*TABLES, FIGURE):
        raise InputError(f"There is no {config.what!r} to reproduce: choose from {', '.join([*TABLES, FIGURE])}.")
    if config.on not in (None, DEMO):
        raise InputError(f"--on is demo, not {config.on!r}: real datasets are found in --dataset-root.")
    if config.what == FIGURE and (config.rows is not None or config.train_steps is not None):
        raise InputError("--rows and --train-steps go with a table: Figure 2 is of text prompts, layer by layer.")
    from cli.reproduction.run import FIGURE2_DATASET, plan_of, reproduce_figure, reproduce_table
    from cli.reproduction.workplace import Workplace, find_datasets
    from featstore.backbones.locate import is_at_hand
    from featstore.backbones.models import open_model
    from featstore.pipeline.defaults import choose_compute, model_for
    from featstore.recipes import load_recipes

    recipes = load_recipes()
    roots = {**find_datasets(config.dataset_root), **({} if config.on is None else {DEMO: None})}
    plan = None if config.what == FIGURE else plan_of(config, recipes, roots)
    real = {FIGURE2_DATASET} & roots.keys() if plan is None else {*plan.datasets} - {DEMO}
    # the report's model; the demo's stands for it on drawn pictures alone
    name = config.model or ("sd2-1" if config.on is None else model_for(min(real, default=DEMO), None))
    if dry_run and not is_at_hand(name, config.revision):
        say(f"The model {name} is not on this machine: what this takes can be counted once it is.")
        return
    place = Workplace(
        config,
        open_model(name, config.revision),
        choose_compute(config.device, config.dtype, config.batch_size),
        recipes,
        roots,
    )
    say(f"model {place.model.location.id}, images of {place.model.image_size} pixels")
    if plan is None:
        reproduce_figure(place, dry_run, json)
    else:
        reproduce_table(place, plan, name, dry_run, json)


command = taking(ReproduceConfig)(reproduce)
