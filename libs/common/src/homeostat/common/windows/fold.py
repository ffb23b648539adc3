"""The fold of one entity: events and labels in, feature values out, the same wherever it runs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, SupportsInt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from homeostat.common.errors import HomeostatError
from homeostat.common.windows import batches
from homeostat.common.windows.layout import compile_layout
from homeostat.common.windows.packing import HEADER_BYTES, MAX_VARINT_BYTES, bytes_bound
from homeostat.common.windows.rows import Events
from homeostat.common.windows.spec import LABEL, AggregateFeature
from homeostat.common.windows.state import State, empty_rows
from homeostat.common.windows.tables import LAYOUT_VERSION, Absent

MAX_UNITS = float(2**53)  # of one value: what a float64 still counts one by one


class UnreadableRow(HomeostatError):
    """Packed bytes are damaged, or were written under another definition or layout."""

    code = "UNREADABLE_ROW"


class Evaluated(NamedTuple):
    """``values[n, f]``, NaN unless present, and ``statuses[n, f]``, each a `Status`."""

    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]


class Folded(NamedTuple):
    """What each event saw at its own time, itself included.

    ``beyond_reach[n]`` marks events older than some window still holds: those windows left them
    out, as they would have dropped them by now had they come in time.
    """

    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]
    beyond_reach: NDArray[np.bool_]


class Read(NamedTuple):
    """What a read saw; ``is_merged[n]`` is false where the own event had already arrived."""

    values: NDArray[np.float64]
    statuses: NDArray[np.uint8]
    is_merged: NDArray[np.bool_]


class EntityFold:
    """The compiled aggregates of one entity.

    Values are folded in fixed point: ``scales`` names the size of a field's unit (0.01 for cents).
    A field without one is rounded to 1e-6, an error of at most 5e-7 a value. A value must lie
    within 2^53 units (9e9 at the scale 1e-6); one that does not is folded as a null and counted.
    Sums and squares are exact integers, so that no order of events shows in any bit.

    ``texts`` names the fields that are no numbers. Their columns hold 64-bit hashes, 0 for null.

    Times are epoch milliseconds, int64; event hashes uint64; row numbers int32, from a `State`.
    """

    def __init__(
        self,
        entity: str,
        features: Sequence[AggregateFeature],
        *,
        scales: Mapping[str, float] | None = None,
        texts: Collection[str] = (),
        lateness: timedelta = timedelta(0),
        absent: Absent = Absent.DROP,
    ) -> None:
        layout = compile_layout(
            entity, features, scales=scales or {}, texts=texts, lateness=lateness, absent=absent
        )
        self.entity = entity
        self.features = tuple(features)
        self.feature_names = tuple(feature.name for feature in features)
        self.fields = layout.fields  # the columns of events, in order
        self.texts = layout.texts
        self.uses_labels = LABEL in layout.scales
        self.definition_hash = layout.definition_hash
        self._plan = layout.plan
        self._scales = layout.scales
        version = LAYOUT_VERSION.to_bytes(2, "little")
        self._header = version + bytes.fromhex(layout.definition_hash)[: HEADER_BYTES - 2]

    @property
    def bytes_per_entity_bound(self) -> int:
        """The most bytes that a packed row can take, every pane of every window full."""
        return bytes_bound(self._plan)

    def new_state(self) -> State:
        return State(self._plan)

    def events(
        self, times: ArrayLike, hashes: ArrayLike, columns: Mapping[str, ArrayLike]
    ) -> Events:
        """Bring ``n`` events into fixed point.

        ``columns`` holds each of `fields`: numbers, NaN for null, but hashes for `texts`.
        """
        return self._fixed_point(times, hashes, columns, self.fields)

    def labels(self, times: ArrayLike, hashes: ArrayLike, labels: ArrayLike) -> Events:
        """Bring ``n`` labels into fixed point, under their events' times and hashes."""
        if not self.uses_labels:
            raise ValueError(f"no aggregate of {self.entity} uses the label: fold none")
        return self._fixed_point(times, hashes, {LABEL: labels}, (LABEL,))

    def fold_events(self, state: State, numbers: NDArray[np.int32], events: Events) -> Folded:
        """Fold events in order, and evaluate each at its own time right after it is folded.

        An event whose row is -1 (a null key) is folded nowhere; its features are missing.
        """
        numbers = _numbers(state, numbers)
        count = numbers.size
        _check_events(events, count, len(self.fields))
        values, statuses = self._unanswered(count)
        beyond_reach, entry = np.zeros(count, np.bool_), self._entry()

        def step(start: int) -> SupportsInt:
            return batches.fold_events(
                self._plan,
                state.rows,
                numbers,
                events,
                start,
                values,
                statuses,
                beyond_reach,
                entry,
            )

        _complete(state, numbers, step)
        return Folded(values, statuses, beyond_reach)

    def fold_labels(
        self, state: State, numbers: NDArray[np.int32], labels: Events
    ) -> NDArray[np.bool_]:
        """Fold each label at its event's time; returns which ones were beyond reach.

        A label is folded once and for good: a second one for the same event adds to the first.
        """
        numbers = _numbers(state, numbers)
        _check_events(labels, numbers.size, 1)
        beyond_reach, entry = np.zeros(numbers.size, np.bool_), self._entry()

        def step(start: int) -> SupportsInt:
            return batches.fold_labels(
                self._plan, state.rows, numbers, labels, start, beyond_reach, entry
            )

        _complete(state, numbers, step)
        return beyond_reach

    def evaluate(self, state: State, numbers: NDArray[np.int32], at: ArrayLike) -> Evaluated:
        """Evaluate rows at instants (epoch ms); the row -1 is missing."""
        numbers = _numbers(state, numbers)
        instants = _column(at, np.int64, (numbers.size,))
        answer = self._unanswered(numbers.size)
        batches.evaluate(self._plan, state.rows, numbers, instants, *answer, self._entry())
        return answer

    def contains(
        self, state: State, numbers: NDArray[np.int32], hashes: ArrayLike
    ) -> NDArray[np.bool_]:
        """Say of each event id whether it is among the newest 32 that its row has folded."""
        numbers = _numbers(state, numbers)
        found = np.zeros(numbers.size, np.bool_)
        ids = _column(hashes, np.uint64, (numbers.size,))
        batches.contain(self._plan, state.rows, numbers, ids, found)
        return found

    def merge(
        self,
        state: State,
        numbers: NDArray[np.int32],
        other: State,
        other_numbers: NDArray[np.int32],
    ) -> None:
        """Fold into rows all that rows of another state hold; their events must not overlap."""
        numbers, other_numbers = _numbers(state, numbers), _numbers(other, other_numbers)
        _column(other_numbers, np.int32, (numbers.size,))
        if numbers.min(initial=0) < 0 or other_numbers.min(initial=0) < 0:
            raise ValueError("only rows that exist can be merged")

        def step(start: int) -> SupportsInt:
            return batches.merge(self._plan, state.rows, numbers, other.rows, other_numbers, start)

        _complete(state, numbers, step)

    def pack(self, state: State, numbers: NDArray[np.int32]) -> list[bytes]:
        """Write rows as bytes. Equal states have equal bytes."""
        numbers = _numbers(state, numbers)
        words = batches.count_words(self._plan, state.rows, numbers)
        size = int(words) * MAX_VARINT_BYTES + numbers.size * HEADER_BYTES
        packed, ends = np.empty(size, np.uint8), np.empty(numbers.size, np.int64)
        header = np.frombuffer(self._header, np.uint8)
        batches.pack(self._plan, state.rows, numbers, header, packed, ends)
        whole, stops = packed[: ends[-1] if ends.size else 0].tobytes(), ends.tolist()
        return [whole[start:stop] for start, stop in pairwise([0, *stops])]

    def unpack(self, state: State, numbers: NDArray[np.int32], packed: Sequence[bytes]) -> None:
        """Replace rows by packed ones; `UnreadableRow` stops it, the rows before being replaced."""
        numbers = _numbers(state, numbers)
        if numbers.min(initial=0) < 0:
            raise ValueError("only rows that exist can be replaced: intern the keys first")
        buffer, ends = self._joined(packed, numbers.size)

        def step(start: int) -> SupportsInt:
            return batches.unpack(self._plan, state.rows, numbers, buffer, ends, start)

        _complete(state, numbers, step)

    def read(
        self,
        packed: Sequence[bytes | None],
        at: ArrayLike,
        own: Events | None = None,
        *,
        merge: ArrayLike | None = None,
    ) -> Read:
        """Evaluate packed rows (None: the store has none) at instants, and store nothing.

        ``own`` holds the event being scored of each row. It is merged first, unless the row has
        folded it already; ``merge`` leaves out those rows that bring none.
        """
        buffer, ends = self._joined(packed, len(packed))
        count = len(packed)
        if own is None:
            own, merge = self._no_events(), np.zeros(count, np.bool_)
        else:
            _check_events(own, count, len(self.fields))
            merge = np.ones(count, np.bool_) if merge is None else merge
        is_merged = _column(merge, np.bool_, (count,)).copy()
        answer = self._unanswered(count)
        instants = _column(at, np.int64, (count,))
        done = batches.read(
            self._plan,
            empty_rows(self._plan, 1),
            buffer,
            ends,
            instants,
            own,
            is_merged,
            *answer,
            self._entry(),
        )
        _check_readable(int(done))
        return Read(*answer, is_merged)

    def _fixed_point(
        self,
        times: ArrayLike,
        hashes: ArrayLike,
        columns: Mapping[str, ArrayLike],
        fields: Sequence[str],
    ) -> Events:
        instants = _column(times, np.int64)
        count = instants.size
        values = np.zeros((count, len(fields)), np.int64)
        valid = np.zeros((count, len(fields)), np.bool_)
        out_of_range = 0
        for number, field in enumerate(fields):
            if field in self.texts:
                hashed = _column(columns[field], np.uint64, (count,))
                values[:, number], valid[:, number] = hashed.view(np.int64), hashed != 0
                continue
            column, scale = _column(columns[field], np.float64, (count,)), self._scales[field]
            with np.errstate(over="ignore"):
                units = np.rint(column * scale.divisor / scale.multiplier)
            is_valid = np.abs(units) <= MAX_UNITS  # false for NaN
            out_of_range += int(np.count_nonzero(~is_valid & ~np.isnan(units)))
            values[is_valid, number] = units[is_valid]
            valid[:, number] = is_valid
        return Events(instants, _column(hashes, np.uint64, (count,)), values, valid, out_of_range)

    def _no_events(self) -> Events:
        return self.events([], [], {field: [] for field in self.fields})

    def _unanswered(self, count: int) -> Evaluated:
        shape = (count, len(self.feature_names))
        return Evaluated(np.empty(shape, np.float64), np.empty(shape, np.uint8))

    def _entry(self) -> NDArray[np.int64]:
        return np.empty(self._plan.scratch, np.int64)

    def _joined(
        self, packed: Sequence[bytes | None], count: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if len(packed) != count:
            raise ValueError(f"{len(packed)} packed rows for {count} row numbers")
        known = [row or b"" for row in packed]
        for row in known:
            if row and not row.startswith(self._header):
                raise UnreadableRow(self._why_foreign(row))
        ends = np.fromiter(accumulate(map(len, known)), np.int64, count)
        return np.frombuffer(b"".join(known), np.uint8), ends

    def _why_foreign(self, row: bytes) -> str:
        version, definition = int.from_bytes(row[:2], "little"), row[2:HEADER_BYTES].hex()
        return (
            f"a row of {self.entity} has layout {version} and definition {definition}…, "
            f"but layout {LAYOUT_VERSION} and definition {self.definition_hash[:16]}… is read here"
        )


def _complete(state: State, numbers: NDArray[np.int32], step: Callable[[int], SupportsInt]) -> None:
    """Run a batch to its end, giving the arena room whenever the kernel stops for it."""
    state.touch(numbers)
    done = int(step(0))
    while 0 <= done < numbers.size:
        state.grow_arena()
        done = int(step(done))
    _check_readable(done)


def _check_readable(done: int) -> None:
    if done < 0:
        raise UnreadableRow(f"packed row {-1 - done} of the batch is damaged")


def _numbers(state: State, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    column = _column(numbers, np.int32)
    if column.max(initial=-1) >= state.rows.newest.size:
        raise IndexError(f"there is no row {column.max()}: row numbers come from the state")
    return column


def _column(
    numbers: ArrayLike, dtype: type[np.generic], shape: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """Take a column as the kernels want it: contiguous, writeable (one signature), of its shape."""
    column = np.require(numbers, dtype, ["C", "W"])
    if column.ndim != 1 or (shape is not None and column.shape != shape):
        raise ValueError(f"a column of shape {column.shape} where {shape or '(n,)'} belongs")
    return column


def _check_events(events: Events, count: int, width: int) -> None:
    shapes = (events.times.shape, events.hashes.shape, events.values.shape, events.valid.shape)
    if shapes != ((count,), (count,), (count, width), (count, width)):
        raise ValueError(
            f"events of shapes {shapes} where {count} events of {width} fields belong: "
            "make them with `EntityFold.events` or `EntityFold.labels`"
        )
