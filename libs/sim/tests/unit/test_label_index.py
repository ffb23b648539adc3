"""A label meets its event once, whichever comes first."""

from homeostat.features.outcomes import IndexedEvent, Joined, KnownLabel
from homeostat.sim.label_index import LabelIndex

EVENT = IndexedEvent(1_000, {"customer_id": "c1"})
FRAUD, HONEST = KnownLabel(1.0, 5_000), KnownLabel(0.0, 6_000)


def test_a_label_after_its_event_joins_at_once() -> None:
    index = LabelIndex()
    index.add_event("e1", EVENT)

    assert index.add_label("e1", FRAUD) == Joined("e1", EVENT, FRAUD, 1)


def test_a_label_before_its_event_waits_for_it() -> None:
    index = LabelIndex()

    assert index.add_label("e1", FRAUD) is None
    assert index.add_event("e1", EVENT) == [Joined("e1", EVENT, FRAUD, 1)]


def test_a_correction_is_a_new_version_and_a_repetition_is_nothing() -> None:
    index = LabelIndex()
    index.add_event("e1", EVENT)
    index.add_label("e1", FRAUD)

    assert index.add_label("e1", FRAUD) is None
    assert index.add_label("e1", HONEST) == Joined("e1", EVENT, HONEST, 2)


def test_a_repeated_event_brings_no_label_twice() -> None:
    index = LabelIndex()
    index.add_label("e1", FRAUD)
    index.add_event("e1", EVENT)

    assert index.add_event("e1", EVENT) == []
