"""Draw splits that keep copies, groups and near duplicates together."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from cnn_research.core.errors import UsageError, UserError
from cnn_research.data.dataset import Examples

MOST_ALIKE = 100
"""Maximum number of near duplicates joined to a unit (or twice the largest given group): in a chain
in which each resembles the next, the first and the last may be quite different."""


def units_of(examples: Examples, pool: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """Assign each example in `pool` (int64 `[n]`) to a unit; return int64 `[examples]`.

    A unit is identified by the index of one of its examples; -1 means not in `pool`. Exact copies
    and the examples of a group form units. Then the pairs `alike` (int64 `[pairs, 2]`, most similar
    first) join units as long as these stay small.
    """
    own = np.full(len(examples.images), -1)
    own[pool] = pool
    parents: list[int] = own.tolist()
    sizes = [1] * len(parents)

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    def join(one: int, other: int, most: float) -> None:
        one, other = sorted((root(one), root(other)))
        if one != other and sizes[one] + sizes[other] <= most:
            parents[other] = one
            sizes[one] += sizes[other]

    first: dict[bytes | str, int] = {}
    for index in pool.tolist():
        join(first.setdefault(examples.digests[index], index), index, np.inf)
        if examples.groups is not None and (group := str(examples.groups[index])):
            join(first.setdefault(group, index), index, np.inf)
    most = max(MOST_ALIKE, 2 * max(sizes))
    for one, other in alike.tolist():
        if parents[one] >= 0 and parents[other] >= 0:
            join(one, other, most)
    return np.array([index if index < 0 else root(index) for index in parents])


class Drawing:
    """Draws splits or folds of units, in an order determined by the seed.

    Every class is drawn in proportion, but never all of it. If classes are too small for that, the
    seed decides which of them contribute an image, the same ones for every split.
    """

    def __init__(self, examples: Examples, units: np.ndarray, seed: int):
        """`units` are those of `units_of`."""
        members: dict[int, list[int]] = defaultdict(list)
        for index in np.flatnonzero(units >= 0).tolist():
            members[int(units[index])].append(index)
        _, strata = np.unique(examples.strata, return_inverse=True)
        of = strata.tolist()
        key = str(seed).encode()

        def drawn(unit: Sequence[int]) -> bytes:
            if examples.by_name:
                what = min(str(examples.names[index]) for index in unit).encode()
            else:
                what = min(examples.digests[index] for index in unit)
            return hashlib.blake2b(what, key=key).digest()

        self.units = [
            (unit, list(Counter(of[index] for index in unit).items()))
            for unit in sorted(members.values(), key=drawn)
        ]
        self.totals = np.bincount(strata[units >= 0], minlength=strata.max() + 1)
        self.left = self.totals.tolist()
        """Images of each class that are in no split yet."""
        self.ranks = np.random.default_rng(seed).permutation(len(self.totals))

    def draw(self, count: int) -> np.ndarray:
        """Draw about `count` of the remaining examples: ascending indices, int64 `[n]`.

        A unit is taken if that brings the counts of its classes, and the total, closer to their
        targets. Raises `UserError` if no unit can be.
        """
        wanted, left, rest = self._wanted(count).tolist(), count, []
        chosen: list[int] = []
        for unit, content in self.units:
            nearer = sum(abs(wanted[c]) - abs(wanted[c] - n) for c, n in content)
            leaves = all(self.left[c] > n for c, n in content)
            if nearer > 0 and leaves and len(unit) < 2 * left:
                for c, n in content:
                    wanted[c] -= n
                chosen += self._take(unit, content)
                left -= len(unit)
            else:
                rest.append((unit, content))
        if not chosen:
            classes = int(np.count_nonzero(self.totals))
            raise nothing_drawn([unit for unit, _ in self.units], count, classes)
        self.units = rest
        return np.sort(np.array(chosen, np.int64))

    def deal(self, fold: int, folds: int) -> np.ndarray:
        """Return one of `folds` equal parts: ascending indices, int64 `[n]`.

        Raises `UsageError` if there are fewer units than parts.
        """
        if len(self.units) < folds:
            raise UsageError(
                f"--data.folds is {folds}, but there are only {len(self.units)} images or groups "
                "of images that stay together: use fewer folds"
            )
        filled = [[0] * len(self.left) for _ in range(folds)]
        sizes, rest = [0] * folds, []
        chosen: list[int] = []
        # Counts are relative to the class: two images of a rare class in one part are worse than
        # two more of a common class.
        weights = [1 / max(1, total) ** 2 for total in self.totals.tolist()]
        # The largest first, while there is room everywhere; equally large ones stay in order.
        for unit, content in sorted(self.units, key=lambda each: -len(each[0])):
            like = [
                (sum(part[c] * n * weights[c] for c, n in content), size)
                for part, size in zip(filled, sizes)
            ]
            at = like.index(min(like))
            sizes[at] += len(unit)
            for c, n in content:
                filled[at][c] += n
            if at == fold:
                chosen += self._take(unit, content)
            else:
                rest.append((unit, content))
        left = {id(unit) for unit, _ in rest}
        self.units = [each for each in self.units if id(each[0]) in left]
        return np.sort(np.array(chosen, np.int64))

    def _take(self, unit: list[int], content: Sequence[tuple[int, int]]) -> list[int]:
        for c, n in content:
            self.left[c] -= n
        return unit

    def _wanted(self, count: int) -> np.ndarray:
        """Number of images to draw from each class, int64 `[classes]`.

        In proportion to the original counts, and leaving at least one image of each class.
        """
        whole, remainders = np.divmod(count * self.totals, self.totals.sum())
        most = np.maximum(np.array(self.left) - 1, 0)
        wanted = np.minimum(whole, most)
        order = np.lexsort((self.ranks, -remainders))
        while (missing := count - wanted.sum()) > 0:
            spare = [c for c in order if wanted[c] < most[c]][:missing]
            if not spare:
                break
            wanted[spare] += 1
        return wanted


def nothing_drawn(units: Sequence[Sequence[int]], count: int, classes: int) -> UserError:
    """Make the error for a split of `count` images, and `classes` classes, that no unit fits."""
    sizes = sorted(map(len, units))
    size, images = sizes[0], sum(sizes)
    why = "every class would lose its last image"
    if size > 1 and (size >= 2 * count or len(units) > classes):
        of = f" of {classes:,} classes" * (size < 2 * count)
        why = f"the smallest has {size:,} images, but {count:,}{of} are to be held out"
    return UserError(
        f"no images can be held out: the {images:,} images form {len(units):,} "
        f"group{'s' * (len(units) != 1)} that must stay together (identical once decoded, on "
        f"white if transparent; near duplicates; --data.group), and {why}: add different images, "
        "increase --data.validation and --data.test, or set them to 0"
    )
