"""Who of several processes matches which pairs: neighbours stay together, as they share images."""

from collections.abc import Collection, Sequence

from matcher.pairs import MatchingPair
from matcher.sweep import grouped

Shares = list[list[int]]
"""Indices of pairs, those of each process in their order."""


def by_target(pairs: Sequence[MatchingPair], count: int, done: Collection[str] = ()) -> Shares:
    """All pairs into a target image go to one process, which then correlates what one process alone would, and so to
    the same bits; most categories go to one as a whole. done: target images that are no work any more."""
    targets: dict[str, list[int]] = {}
    for members in grouped(pairs, lambda pair: pair.category, range(len(pairs))).values():
        for target, own in grouped(pairs, lambda pair: pair.target, members).items():
            targets.setdefault(target, []).extend(own)
    return in_blocks(list(targets.values()), [target not in done for target in targets], count)


def by_category(pairs: Sequence[MatchingPair], count: int, done: Collection[str] = ()) -> Shares:
    """For maps that are made a category at a time and not kept: no two processes make the same. done: target images
    that are no work any more; a category is none when all of its are done."""
    groups = list(grouped(pairs, lambda pair: pair.category, range(len(pairs))).values())
    left = [any(pairs[index].target not in done for index in group) for group in groups]
    return in_blocks(groups, left, count)


def in_blocks(groups: Sequence[Sequence[int]], left: Sequence[bool], count: int) -> Shares:
    """Whole groups of indices, one after the other, in `count` shares of about as many indices of groups that are still
    `left` to be done; shares may be empty."""
    shares: Shares = [[] for _ in range(count)]
    work = [len(group) if own else 0 for group, own in zip(groups, left, strict=True)]
    total, before = max(sum(work), 1), 0
    for group, own in zip(groups, work, strict=True):
        middle = before + own / 2
        shares[min(int(middle * count / total), count - 1)] += group
        before += own
    return [sorted(share) for share in shares]
