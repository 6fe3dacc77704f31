"""A reproduction's tables without running anything: DIFT at 40 [39, 41] everywhere."""

import json
from dataclasses import asdict
from pathlib import Path

from cli.reproduction.paper import choose_rows, load_tables, plan_table
from cli.reproduction.tables import compare, notes
from featstore.recipes import load_recipes
from matcher.statistics import Interval


def write_reproduction(work: Path) -> None:
    """Tables 3 and 5 on SPair-71k, as `dualsd reproduce` keeps them in its work folder."""
    folder = work / "tables"
    folder.mkdir(parents=True)
    for name in ("table3", "table5"):
        table = load_tables()[name]
        plan = plan_table(table, choose_rows(table, ["dift"], load_recipes()), ("spair",), None)
        figures = {
            where: {
                "nn": {alpha: dict.fromkeys(table.categories, Interval(0.40, 0.39, 0.41)) for alpha in table.alphas}
            }
            for where in plan.cells
        }
        content = {
            "table": name,
            "model": "sd2-1",
            "model_fingerprint": "84f6ae953ed03c3c18bec057c727c21d",
            "train_steps": None,
            "notes": notes(plan, "sd2-1", 768, None, {}),
            "figures": list(map(asdict, compare(plan, figures))),
            "commands": {"dift on spair": "dualsd eval --layers 2 --t 261"},
            "creator": "0.1.0",
        }
        (folder / f"{name}.json").write_text(json.dumps(content))
