"""Compact columns of text: a million trials are a few arrays, not a million objects.

Compared with pyarrow's (600,000 trials, 8 columns, a 2-core x86 CPU; ``benchmarks/protocols.py --pyarrow``), they are
built twice as fast in 0.7 of the memory; reading a row is 2.3 times, handing all rows to a worker 3 times, and pickling
a slice some 400 times as fast; choosing rows at random, which a run does once, takes 7 times as long. pyarrow takes
0.13 s to import, and 176 MB on disk.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

_ENCODING = ("utf-8", "surrogatepass")  # a file's name may have bytes that are not UTF-8


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """n texts, mostly different: their bytes one after another, and where each text ends.

    Args:
        data: All texts in UTF-8, one after another.
        ends: (n,) positions in ``data``.
        before: What every text starts with; not in ``data``.
        after: What every text ends with; not in ``data``.
    """

    data: bytes
    ends: NDArray[np.int64]
    before: str = ""
    after: str = ""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """Pack texts."""
        pool = TextPool()
        pool.extend(texts)
        return pool.packed()

    def around(self, before: str, after: str) -> "Texts":
        """Each text between two others; the bytes are shared."""
        return replace(self, before=before, after=after)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: "slice | NDArray[np.integer]") -> "Texts": ...
    def __getitem__(self, index: "int | slice | NDArray[np.integer]") -> "str | Texts":
        if isinstance(index, slice):
            return self._slice(*index.indices(len(self)))
        if isinstance(index, np.ndarray):
            return self._chosen(index.tolist())
        index = range(len(self.ends))[index]
        text = self.data[self.ends[index - 1] if index else 0 : self.ends[index]]
        return f"{self.before}{text.decode(*_ENCODING)}{self.after}"

    def _slice(self, start: int, stop: int, step: int) -> "Texts":
        if step == 1 and start < stop:
            first = int(self.ends[start - 1]) if start else 0
            ends = self.ends[start:stop]
            return replace(self, data=self.data[first : int(ends[-1])], ends=ends - first)
        return self._chosen(range(start, stop, step))

    def _chosen(self, indices: Iterable[int]) -> "Texts":
        bare = self.around("", "")
        return Texts.of([bare[index] for index in indices]).around(self.before, self.after)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends.tolist():
            yield self.before + self.data[start:end].decode(*_ENCODING) + self.after
            start = end


@dataclass(frozen=True, eq=False)
class Categories(Sequence[str | None]):
    """n values, few of them different: the different ones, and a number for each of the n.

    Args:
        values: The different values.
        codes: (n,) indices into ``values``.
    """

    values: tuple[str | None, ...]
    codes: NDArray[np.unsignedinteger]

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: "slice | NDArray[np.integer]") -> "Categories": ...
    def __getitem__(self, index: "int | slice | NDArray[np.integer]") -> "str | Categories | None":
        if isinstance(index, slice | np.ndarray):
            return replace(self, codes=self.codes[index])
        return self.values[int(self.codes[index])]

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[str | None]:
        return map(self.values.__getitem__, self.codes.tolist())


class TextPool:
    """Gathers texts for a `Texts`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._sizes: list[NDArray[np.int64]] = []

    def extend(self, texts: Sequence[str]) -> None:
        joined = "".join(texts)
        encoded = texts if joined.isascii() else [text.encode(*_ENCODING) for text in texts]
        self._parts.append(joined.encode(*_ENCODING))
        self._sizes.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def packed(self) -> Texts:
        return Texts(b"".join(self._parts), np.cumsum(np.concatenate(self._sizes)))


class _Numbers(dict[str | None, int]):
    """The number of each different value, in the order of their first occurrence; ``absent`` words count as None."""

    def __init__(self, absent: Container[str]) -> None:
        super().__init__()
        self.absent = absent
        self.values_in_order: list[str | None] = []

    def __missing__(self, value: str | None) -> int:
        if value is not None and value in self.absent:
            self[value] = self[None]
        else:
            self[value] = len(self.values_in_order)
            self.values_in_order.append(value)
        return self[value]


class CategoryPool:
    """Gathers values for a `Categories`."""

    def __init__(self, absent: Container[str] = ()) -> None:
        self._numbers = _Numbers(absent)
        self._codes: list[NDArray[np.unsignedinteger]] = []

    def extend(self, values: Iterable[str | None]) -> None:
        codes = np.fromiter(map(self._numbers.__getitem__, values), np.uint32)
        self._codes.append(codes.astype(np.min_scalar_type(len(self._numbers))))

    def repeat(self, value: str | None, times: int) -> None:
        number = self._numbers[value]
        self._codes.append(np.full(times, number, np.min_scalar_type(number)))

    def packed(self) -> Categories:
        return Categories(tuple(self._numbers.values_in_order), np.concatenate(self._codes))
