"""One of several equal shares of a stage's images, for as many jobs or processes that fill one store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Part:
    """Share `number`, from 1, of `count`."""

    number: int
    count: int

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th of the items, from the `number`-th on.

        Of what is asked for, not of what is missing, so that it is the same whenever a part starts. Every n-th and no
        block, because the store's images come category by category: what a stopped run or another split left is then
        spread over all parts. Which rows come together makes no difference to them: batches are padded.
        """
        return items[self.number - 1 :: self.count]


WHOLE = Part(1, 1)
