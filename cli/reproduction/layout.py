"""A comparison as blocks of text: a row a method as in the paper."""

from collections.abc import Iterator

from cli.reports.tables import Block
from cli.reproduction.comparison import Compared, Comparison
from cli.reproduction.plan import Column, Plan, Row

NONE = "-"
OUTSIDE = "*"
"""Marks a difference where the paper's figure lies outside our interval."""


def blocks(comparison: Comparison) -> list[Block]:
    """A block a dataset that something is run on: a row a method; where the paper's columns are categories, three lines
    each."""
    layout = _by_category if comparison.plan.table.by_category else _by_alpha
    return [layout(comparison, column) for column in _shown(comparison.plan)]


def narrow_blocks(comparison: Comparison) -> list[Block]:
    """The same for a narrow terminal where columns are categories: a block a method, a row a category."""
    plan = comparison.plan
    return [
        Block(
            f"{row.name}, {_title(plan, column)}",
            ("category", *_header(plan, column)),
            tuple(
                (category, *_numbers(comparison, row, column, category))
                for category in comparison.categories[column.dataset]
            ),
        )
        for column in _shown(plan)
        for row in plan.rows
    ]


def _shown(plan: Plan) -> list[Column]:
    """The paper's figures alone are no comparison."""
    return [column for column in plan.columns if any(dataset == column.dataset for _, dataset in plan.cells)]


def _by_alpha(comparison: Comparison, column: Column) -> Block:
    plan = comparison.plan
    (category,) = comparison.categories[column.dataset]
    rows = tuple((row.name, *_numbers(comparison, row, column, category)) for row in plan.rows)
    return Block(_title(plan, column), ("method", *_header(plan, column)), rows)


def _by_category(comparison: Comparison, column: Column) -> Block:
    plan, categories = comparison.plan, comparison.categories[column.dataset]
    rows: list[tuple[str, ...]] = []
    for row in plan.rows:
        for alpha in plan.table.alphas:
            own = [comparison.of(row, column, category, alpha) for category in categories]
            with_interval = [*map(_mean, own[:-1]), _ours(own[-1])]  # of `all` alone: 18 more would be too wide
            rows.append((row.name, f"ours @{alpha:g}", *with_interval))
            rows.append(("", _paper_name(column), *map(_paper, own)))
            if not column.is_stand_in:
                rows.append(("", "difference", *map(_difference, own)))
    return Block(_title(plan, column), ("method", "", *categories), tuple(rows), left_columns=2)


def _title(plan: Plan, column: Column) -> str:
    in_place = f" in place of {', '.join(column.stands_for)}" if column.is_stand_in else ""
    return f"{plan.table.title}, {column.dataset}{in_place}"


def _header(plan: Plan, column: Column) -> Iterator[str]:
    for alpha in plan.table.alphas:
        yield from (f"@{alpha:g}", _paper_name(column))
        if not column.is_stand_in:
            yield "difference"


def _numbers(comparison: Comparison, row: Row, column: Column, category: str) -> Iterator[str]:
    for alpha in comparison.plan.table.alphas:
        one = comparison.of(row, column, category, alpha)
        yield from (_ours(one), _paper(one))
        if not column.is_stand_in:
            yield _difference(one)


def _paper_name(column: Column) -> str:
    """Beside a stand-in the paper's figures are of other data, and no difference is taken."""
    return f"paper, {column.stands_for[0]}" if column.is_stand_in else "paper"


def _ours(one: Compared) -> str:
    if one.ours is None:
        return NONE
    return f"{100 * one.ours.mean:.2f} [{100 * one.ours.low:.2f}, {100 * one.ours.high:.2f}]"


def _mean(one: Compared) -> str:
    return NONE if one.ours is None else f"{100 * one.ours.mean:.2f}"


def _paper(one: Compared) -> str:
    return NONE if one.paper is None else f"{one.paper:.2f}"


def _difference(one: Compared) -> str:
    if one.difference is None:
        return NONE
    return f"{one.difference:+.2f}{OUTSIDE if one.paper_is_outside else ' '}"
