"""PCK tables as data: nested dictionaries for JSON, tidy rows for CSV, and the rows of the paper's Tables 3 and 4."""

from collections.abc import Iterator

from matcher.pairs import ALL
from matcher.pck import Average, Columns, PckTable


def to_json(table: PckTable) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """`{readout: {"image"|"point": {"0.05": {"all": 0.4121, category: ...}}}}`, values as fractions."""
    return {
        readout.value: {
            average.value: {f"{alpha:g}": _over_all_first(columns) for alpha, columns in by_alpha.items()}
            for average, by_alpha in by_average.items()
        }
        for readout, by_average in table.values.items()
    }


CSV_HEADER = ("readout", "average", "alpha", "category", "pck_percent")


def to_rows(table: PckTable) -> Iterator[tuple[str, str, str, str, str]]:
    """One row a number, in the order of `CSV_HEADER`."""
    for readout, by_average in table.values.items():
        for average, by_alpha in by_average.items():
            for alpha, columns in by_alpha.items():
                for category, value in _over_all_first(columns).items():
                    yield readout.value, average.value, f"{alpha:g}", category, f"{100 * value:.4f}"


def paper_rows(table: PckTable, average: Average) -> tuple[list[str], list[list[str]]]:
    """Header and rows in the shape of the paper's Tables 3 and 4: a row a readout and alpha, a column a category,
    "all" last; percent with two decimals."""
    rows = [
        [readout.value, f"{alpha:g}", *(f"{100 * value:.2f}" for value in columns.named().values())]
        for readout, by_average in table.values.items()
        for alpha, columns in by_average[average].items()
    ]
    return ["readout", "alpha", *table.categories, ALL], rows


def _over_all_first(columns: Columns[float]) -> dict[str, float]:
    return {ALL: columns.overall, **columns.by_category}
