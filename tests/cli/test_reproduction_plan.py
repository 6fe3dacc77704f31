"""What a table asks for, what of it can be run, and the table beside the paper's figures: nothing is run here."""

from collections.abc import Mapping
from dataclasses import asdict

import pytest

from cli.reports.tables import to_latex, to_markdown
from cli.reproduction.paper import (
    FILE,
    TABLES,
    Cell,
    Plan,
    Row,
    Training,
    choose_rows,
    contradictions,
    load_tables,
    plan_table,
    published_leads,
)
from cli.reproduction.tables import (
    CellFigures,
    Compared,
    blocks,
    compare,
    maxima_block,
    missing,
    narrow_blocks,
    notes,
    stand_ins,
    titles_of,
)
from featstore.recipes import load_recipes
from matcher.errors import InputError
from matcher.statistics import Interval

RECIPES = load_recipes()
EVERYWHERE = ("spair", "pf-pascal", "pf-willow")


def planned(
    table: str, found: tuple[str, ...] = EVERYWHERE, on: str | None = None, rows: tuple[str, ...] | None = None
) -> Plan:
    loaded = load_tables()[table]
    return plan_table(loaded, choose_rows(loaded, rows, RECIPES), (*found, *([] if on is None else [on])), on)


def test_the_papers_408_figures_are_there() -> None:
    assert {name: len(table.figures) for name, table in load_tables().items()} == {
        "table1": 2 * 3 * 2,
        "table2": 2 * 3 * 2,
        "table3": 9 * 19,
        "table4": 9 * 19,
        "table5": 7 * 3 * 2,
    }
    figures = [figure for table in load_tables().values() for figure in table.figures.values()]
    assert len(figures) == 408
    assert all(0 < figure < 100 for figure in figures)
    assert len(FILE.read_text().splitlines()) == 1 + 408


def test_figures_read_off_the_paper() -> None:
    tables = {name: load_tables()[name].figures for name in TABLES}
    assert tables["table3"]["dual-cpm", "spair", "all", 0.05] == 65.01
    assert tables["table4"]["dual-cpm", "spair", "sheep", 0.1] == 62.29
    assert tables["table2"]["dift-dual", "pf-pascal", "all", 0.1] == 85.14
    assert tables["table5"]["dual-single@spair", "pf-willow", "all", 0.05] == 54.61
    assert tables["table1"]["dift", "spair", "all", 0.1] == 52.31


def test_where_the_report_contradicts_itself_it_is_said() -> None:
    said = {name: contradictions(load_tables()[name]) for name in TABLES}
    first = "The report contradicts itself: dift on spair @0.05 is 37.26 in Table 3 and 39.34 in Tables 1 and 5."
    assert all(first in said[name] for name in ("table1", "table3", "table5"))
    assert first not in said["table4"]
    assert any("dift on spair @0.1 is 48.97 in Table 4 and 52.31" in sentence for sentence in said["table4"])
    dual = "dift-dual on spair @0.05 is 41.14 in Table 3 and 41.21 in Tables 2 and 5."
    assert any(dual in sentence for sentence in said["table2"])
    # Table 3's sd4match-single is Table 5's sd4match-single@spair, and there they agree
    assert not any("single" in sentence for sentences in said.values() for sentence in sentences)


@pytest.mark.parametrize(
    ("table", "rows", "cells", "trainings"),
    # Tables 3 and 4 have nine rows of the paper's, and DIFT at t = 50
    [("table1", 2, 6, 0), ("table2", 2, 6, 0), ("table3", 10, 10, 6), ("table4", 10, 10, 6), ("table5", 7, 21, 4)],
)
def test_every_row_is_a_recipe(table: str, rows: int, cells: int, trainings: int) -> None:
    plan = planned(table)
    assert len(plan.rows) == rows
    assert len(plan.distinct_cells) == len(plan.cells) == cells
    assert len(plan.trainings) == trainings
    assert not plan.missing
    assert not stand_ins(plan)
    assert {row.recipe for row in plan.rows} <= set(RECIPES)


def test_table_5_with_every_dataset() -> None:
    plan = planned("table5")
    training = Training("dual-single", "pf-pascal")
    assert plan.cells["dual-single@pf-pascal", "pf-willow"] == Cell("dual-single", training, "pf-willow")
    assert plan.cells["dift", "spair"] == Cell("dift", None, "spair")
    assert {own.name for own in plan.trainings} == {
        *("sd4match-single@pf-pascal", "sd4match-single@spair"),
        *("dual-single@pf-pascal", "dual-single@spair"),
    }
    assert plan.cells["sd4match-single@spair", "pf-pascal"].name == "sd4match-single@spair on pf-pascal"


def test_what_lacks_its_datasets_is_left_out_and_said() -> None:
    plan = planned("table5", ("pf-willow", "pf-pascal"))
    assert plan.missing["dift", "spair"] == ("spair",)
    assert plan.missing["dual-single@spair", "pf-willow"] == ("spair",)
    assert ("dual-single@pf-pascal", "pf-willow") in plan.cells
    assert len(plan.cells) == 5 * 2
    (sentence,) = missing(plan)
    assert sentence.startswith("Not run, for want of spair: all rows on spair, sd4match-single@spair on pf-pascal, ")
    assert sentence.endswith("dual-single@spair on pf-willow.")
    both = planned("table5", ("pf-willow",))
    assert both.missing["dual-single@spair", "pf-pascal"] == ("pf-pascal", "spair")


def test_the_demo_stands_for_all() -> None:
    plan = planned("table5", (), on="demo")
    assert [column.dataset for column in plan.columns] == ["demo"]
    assert plan.columns[0].stands_for == EVERYWHERE
    # trained once, shown in both rows
    assert {own.name for own in plan.trainings} == {"sd4match-single@demo", "dual-single@demo"}
    assert len(plan.distinct_cells) == 5
    assert plan.cells["dual-single@spair", "demo"] is not None
    assert plan.cells["dual-single@spair", "demo"] == plan.cells["dual-single@pf-pascal", "demo"]
    assert plan.datasets == ("demo",)
    trained, tested = stand_ins(plan)
    assert "trn stands for the training set(s) pf-pascal, spair: prompts are trained on it once" in trained
    assert "test split stands for spair, pf-pascal, pf-willow" in tested


def test_the_demo_stands_for_what_is_missing_alone() -> None:
    plan = planned("table5", ("pf-willow",), on="demo")
    assert [(column.dataset, column.is_stand_in) for column in plan.columns] == [("demo", True), ("pf-willow", False)]
    assert plan.cells["dual-single@spair", "pf-willow"] == Cell(
        "dual-single", Training("dual-single", "demo"), "pf-willow"
    )
    assert len(plan.distinct_cells) == 10


BOTH = ("nn", "kernelsoftmax")


def test_rows_that_are_typed() -> None:
    table = load_tables()["table5"]

    def row(name: str, recipe: str, trained_on: str | None) -> Row:
        return Row(name, recipe, trained_on, BOTH, name)

    def chosen(typed: str, name: str = "table5") -> list[Row]:
        return list(choose_rows(load_tables()[name], typed.split(","), RECIPES))

    assert chosen("dift,dual-single@pf-pascal") == [
        row("dift", "dift", None),
        row("dual-single@pf-pascal", "dual-single", "pf-pascal"),
    ]
    assert chosen("dual-single,dual-single@spair") == [row("dual-single@spair", "dual-single", "spair")]
    assert chosen("dual-single@spair", "table3") == [row("dual-single", "dual-single", "spair")]
    assert chosen("dual-cpm@pf-pascal", "table3") == [row("dual-cpm@pf-pascal", "dual-cpm", "pf-pascal")]
    assert chosen("sd-dino") == [row("sd-dino", "sd-dino", None)]
    assert chosen("dift-50", "table4") == [Row("dift-50", "dift-50", None, BOTH, "dift")]
    assert chosen("dift-50", "table1") == [row("dift-50", "dift-50", None)]
    assert chosen("dift-pixel") == [Row("dift-pixel", "dift-pixel", None, ("pixel",), "dift-pixel")]
    assert "sd-dino" not in table.rows
    for typed, words in (
        ("dift2", "'dift2', which is no row and no recipe: the rows of Table 5 are dift, "),
        ("dift@spair", "dift is not trained"),
        ("dual-single@pf-willow", "dual-single is trained on spair, pf-pascal"),
        ("", "'', which is no row"),
    ):
        with pytest.raises(InputError, match=r"--rows names") as raised:
            chosen(typed)
        assert words in str(raised.value)


def numbers_of(
    plan: Plan, figures: Mapping[tuple[str, str], CellFigures]
) -> dict[tuple[str, str, str, float], Compared]:
    """Of nn."""
    numbers = compare(plan, figures)
    return {(one.row, one.dataset, one.category, one.alpha): one for one in numbers if one.readout == "nn"}


def figures(plan: Plan, mean: float, half: float) -> dict[tuple[str, str], CellFigures]:
    """The same for every cell; by kernelsoftmax 20 points more."""

    def read(more: float) -> dict[float, dict[str, Interval]]:
        interval = Interval(mean + more, mean + more - half, mean + more + half)
        return {alpha: dict.fromkeys(plan.table.categories, interval) for alpha in plan.table.alphas}

    return {where: {"nn": read(0), "kernelsoftmax": read(0.2)} for where in plan.cells}


def test_ours_beside_the_papers() -> None:
    """39.34 on SPair-71k at 0.05 is the paper's of DIFT."""
    plan = planned("table1")
    one = numbers_of(plan, figures(plan, 0.4, 0.005))["dift", "spair", "all", 0.05]
    assert one.difference == pytest.approx(0.66)
    assert one.paper_is_outside
    wider = numbers_of(plan, figures(plan, 0.4, 0.01))["dift", "spair", "all", 0.05]
    assert not wider.paper_is_outside
    first = blocks(plan, compare(plan, figures(plan, 0.4, 0.005)))[0]
    assert first.title == "Table 1, spair"
    assert first.header == ("method", "@0.05", "paper", "difference", "@0.1", "paper", "difference")
    ours = "40.00 [39.50, 40.50]"
    assert first.rows[0] == ("dift by nn", ours, "39.34", "+0.66*", ours, "52.31", "-12.31*")
    ours = "60.00 [59.50, 60.50]"
    assert first.rows[1] == ("dift by kernelsoftmax", ours, "39.34", "+20.66*", ours, "52.31", "+7.69*")
    kept = asdict(one)
    assert (kept["row"], kept["dataset"], kept["alpha"], kept["paper_percent"]) == ("dift", "spair", 0.05, 39.34)
    assert (kept["pck_percent"], kept["low_percent"], kept["high_percent"]) == pytest.approx((40, 39.5, 40.5))
    assert kept["paper_is_outside"] is True


def test_what_was_not_run_is_no_number() -> None:
    plan = planned("table5", ("pf-willow",))
    (block,) = blocks(plan, compare(plan, figures(plan, 0.4, 0.01)))
    assert block.title == "Table 5, pf-willow"
    assert block.rows[0][1] == "40.00 [39.00, 41.00]"
    assert block.rows[6] == ("sd4match-single@pf-pascal by nn", "-", "48.28", "-", "-", "76.97", "-")
    kept = asdict(numbers_of(plan, {})["dift", "spair", "all", 0.05])
    assert kept["pck_percent"] is None
    assert kept["difference"] is None


def test_beside_a_stand_in_no_difference_is_taken() -> None:
    plan = planned("table1", (), on="demo")
    (block,) = blocks(plan, compare(plan, figures(plan, 0.4, 0.01)))
    assert block.header == ("method", "@0.05", "paper, spair", "@0.1", "paper, spair")
    assert block.rows[0] == ("dift by nn", "40.00 [39.00, 41.00]", "39.34", "40.00 [39.00, 41.00]", "52.31")


def test_rows_whose_training_set_was_replaced_have_no_difference() -> None:
    plan = planned("table5", ("pf-willow",), on="demo")
    block = blocks(plan, compare(plan, figures(plan, 0.4, 0.01)))[1]
    assert block.title == "Table 5, pf-willow"
    assert block.rows[0][:4] == ("dift by nn", "40.00 [39.00, 41.00]", "46.31", "-6.31*")
    assert block.rows[-2][:4] == ("dual-single@spair by nn", "40.00 [39.00, 41.00]", "54.61", "-")


def test_columns_by_category() -> None:
    plan = planned("table3")
    (block,) = blocks(plan, compare(plan, figures(plan, 0.5, 0.01)))
    assert block.header[:3] == ("method", "", "aeroplane")
    assert len(block.header) == 2 + 19
    assert [row[:3] for row in block.rows[:3]] == [
        ("dift by nn", "ours @0.05", "50.00"),
        ("", "paper", "45.78"),
        ("", "difference", "+4.22*"),
    ]
    assert block.rows[0][-1] == "50.00 [49.00, 51.00]"
    assert len(block.rows) == 3 * 10 * 2
    tall = narrow_blocks(compare(plan, figures(plan, 0.5, 0.01)), titles_of(plan))
    assert len(tall) == 10 * 2
    assert tall[0].title == "dift by nn, Table 3, spair"
    assert tall[0].rows[0] == ("aeroplane", "50.00 [49.00, 51.00]", "45.78", "+4.22*")
    assert tall[0].width < 80 < block.width


def test_categories_of_a_stand_in_are_its_own() -> None:
    """A drawn bird is none of SPair-71k's, though both are called bird."""
    plan = planned("table4", (), on="demo")
    interval = Interval(0.5, 0.4, 0.6)
    scored = {where: {"nn": {0.1: dict.fromkeys(("bird", "fish", "all"), interval)}} for where in plan.cells}
    (block,) = blocks(plan, compare(plan, scored))
    assert block.header == ("method", "", "bird", "fish", "all")
    assert block.rows[0] == ("dift by nn", "ours @0.1", "50.00", "50.00", "50.00 [40.00, 60.00]")
    assert block.rows[1] == ("", "paper, spair", "-", "-", "48.97")


def test_markdown_and_latex() -> None:
    plan = planned("table1", ("spair",), rows=("dift",))
    parts = blocks(plan, compare(plan, figures(plan, 0.4, 0.005)))[:1]
    page = to_markdown("Table 1", parts, ["A note."])
    assert page.splitlines()[:3] == ["# Table 1", "", "## Table 1, spair"]
    assert "| dift by nn | 40.00 [39.50, 40.50] | 39.34 | +0.66* | 40.00 [39.50, 40.50] | 52.31 | -12.31* |" in page
    assert "| --- | ---: | ---: | ---: | ---: | ---: | ---: |" in page
    assert page.endswith("- A note.\n")
    tables = to_latex(parts, ["100 % of it."])
    assert tables.startswith("% 100 % of it.\n")
    assert (
        r"dift by nn & 40.00 [39.50, 40.50] & 39.34 & $+$0.66* & 40.00 [39.50, 40.50] & 52.31 & $-$12.31* \\" in tables
    )
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrrrr}", r"\end{table}"):
        assert tables.count(word) == 1


def test_notes_say_what_was_not_as_in_the_paper() -> None:
    plan = planned("table5", ("pf-willow",), on="demo")
    said = " ".join(notes(plan, "demo", 128, 50, {"dift on demo": "It broke."}))
    for words in ("Trainings took 50 steps", "The model is the demo's", "dift on demo was not run: It broke."):
        assert words in said
    plain = " ".join(notes(planned("table1"), "sd2-1", 768, 50, {}))
    assert "Trainings" not in plain  # nothing is trained there
    assert "demo" not in plain
    assert "37.26 in Table 3" in plain


def test_a_number_that_is_the_papers_is_not_outside() -> None:
    plan = planned("table1")
    scored = {where: {"nn": {0.05: {"all": Interval(0.3934, 0.38, 0.40)}}} for where in plan.cells}
    one = numbers_of(plan, scored)["dift", "spair", "all", 0.05]
    assert one.difference == pytest.approx(0)
    assert not one.paper_is_outside


def test_dift_at_50_stands_beside_the_papers_dift() -> None:
    """Of Tables 3 and 4, which may have been tested so."""
    for table, percent in (("table3", 37.26), ("table4", 48.97)):
        plan = planned(table)
        assert [row.name for row in plan.rows][:2] == ["dift", "dift-50"]
        found = numbers_of(plan, {})
        alpha = plan.table.alphas[0]
        assert found["dift-50", "spair", "all", alpha].paper_percent == percent
        said = notes(plan, "sd2-1", 768, None, {})
        assert any("dift-50 may be what the paper's dift is, and stands beside its figures" in own for own in said)
    assert "dift-50" not in [row.name for row in planned("table1").rows]


def test_what_the_lead_over_sd4match_is() -> None:
    """By SD4Match's own paper 59.5 and 75.5, by the report's retraining 56.48 and 74.43."""
    (at_005,), (at_01,) = (published_leads(load_tables()[name]) for name in ("table3", "table4"))
    assert "has 59.50 for sd4match-cpm on spair @0.05, Table 3 56.48: dual-cpm's 65.01 leads by +5.5 over" in at_005
    assert "over the one, +8.5 over the other" in at_005
    assert "has 75.50 for sd4match-cpm on spair @0.1, Table 4 74.43: dual-cpm's 76.67 leads by +1.2 over" in at_01
    assert all(published_leads(load_tables()[name]) == [] for name in ("table1", "table2", "table5"))


def test_the_readout_is_said_to_be_open() -> None:
    assert any("does not name its readout" in sentence for sentence in notes(planned("table1"), "sd2-1", 768, None, {}))


def test_a_table_that_was_kept_before_there_were_two_readouts() -> None:
    kept = asdict(compare(planned("table1"), {})[0])
    assert kept.pop("readout") == "nn"
    assert Compared(**kept).method == "dift by nn"


def test_the_maxima_of_figure_2() -> None:
    """Cells as a grid's JSON has them; by nn layer 3 is best at 350 alone and at 250 with layer 2 at 261."""

    def cell(layers: list[int], steps: list[int], nn: float) -> dict[str, object]:
        results = {
            readout: {"image": {"0.1": {"all": own}}} for readout, own in (("nn", nn), ("kernelsoftmax", 1 - nn))
        }
        return {"layers": layers, "t": steps, "results": results}

    alone = [cell([3], [step], pck) for step, pck in ((200, 0.30), (250, 0.31), (350, 0.42))]
    pairs = [cell([2, 3], [261, step], pck) for step, pck in ((200, 0.50), (250, 0.51), (350, 0.40))]
    others = [cell([2], [350], 0.9), cell([2, 3], [350, 350], 0.9)]
    block = maxima_block([*others, *alone, *pairs], BOTH)
    assert block.header == ("layer 3", "the report", "ours by nn", "ours by kernelsoftmax")
    assert block.rows[0] == (
        "alone (2.3)",
        "350",
        "350 (42.00 %, 42.00 % at 350)",
        "200 (70.00 %, 58.00 % at 350)",
    )
    assert block.rows[1][:3] == ("with layer 2 at t = 261 (2.3)", "200", "250 (51.00 %, 50.00 % at 200)")
    assert block.rows[2][:2] == ("after training (2.4)", "150")
    assert len(block.rows[2]) == len(block.header)
