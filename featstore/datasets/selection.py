"""Choosing pairs by category."""

from collections.abc import Collection, Sequence

from featstore.datasets.records import Pair
from featstore.errors import DatasetError
from featstore.plain_text import nfc


def select_categories(pairs: Sequence[Pair], dataset_name: str, categories: Collection[str]) -> tuple[Pair, ...]:
    """The pairs whose category is among `categories`, in their order.

    Raises `DatasetError` for a category that no pair has (listing those that there are), and where no pair remains.
    """
    known = sorted({pair.category for pair in pairs})
    categories = {nfc(category) for category in categories}
    unknown = sorted(set(categories) - set(known))
    if unknown:
        raise DatasetError(
            f"{dataset_name} has no category {', '.join(map(repr, unknown))} among its {len(pairs)} pairs; "
            f"choose from {', '.join(known) or 'none'}."
        )
    chosen = tuple(pair for pair in pairs if pair.category in categories)
    if not chosen:
        raise DatasetError(f"No pair of {dataset_name} remains; name at least one category of {', '.join(known)}.")
    return chosen
