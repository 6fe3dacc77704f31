"""Who of several processes matches which pairs: neighbours stay together, as they share images."""

from collections.abc import Sequence

from matcher.pairs import MatchingPair
from matcher.sweep import grouped

Shares = list[list[int]]
"""Indices of pairs, those of each process in their order."""


def by_target(pairs: Sequence[MatchingPair], count: int) -> Shares:
    """All pairs into a target image go to one process, which then correlates what one process alone would, and so to
    the same bits; most categories go to one as a whole."""
    targets: dict[str, list[int]] = {}
    for members in grouped(pairs, lambda pair: pair.category, range(len(pairs))).values():
        for target, own in grouped(pairs, lambda pair: pair.target, members).items():
            targets.setdefault(target, []).extend(own)
    return in_blocks(list(targets.values()), count)


def by_category(pairs: Sequence[MatchingPair], count: int) -> Shares:
    """For maps that are made a category at a time and not kept: no two processes make the same."""
    return in_blocks(list(grouped(pairs, lambda pair: pair.category, range(len(pairs))).values()), count)


def in_blocks(groups: Sequence[Sequence[int]], count: int) -> Shares:
    """Whole groups of indices, one after the other, in `count` shares of about as many indices; some may be empty."""
    shares: Shares = [[] for _ in range(count)]
    total, before = sum(map(len, groups)), 0
    for group in groups:
        middle = before + len(group) / 2
        shares[min(int(middle * count / total), count - 1)] += group
        before += len(group)
    return [sorted(share) for share in shares]
