"""Topics in memory keep order, positions and what somebody still has to read."""

from homeostat.sim.log import Log


def test_each_reader_has_its_own_position() -> None:
    log = Log()
    fast, slow = log.reader("events"), log.reader("events")
    for number in range(3):
        log.append("events", b"%d" % number, available_at=number)

    read = [record.value for record in fast.read(10)]
    first = [record.value for record in slow.read(1)]

    assert (read, first) == ([b"0", b"1", b"2"], [b"0"])
    assert (fast.is_behind, slow.is_behind) == (False, True)


def test_records_expire_once_every_reader_has_read_them() -> None:
    log = Log()
    fast, slow = log.reader("events"), log.reader("events")
    for number in range(3):
        log.append("events", b"%d" % number, available_at=number)
    fast.read(3)
    slow.read(1)

    log.expire()
    log.append("events", b"3", available_at=3)

    assert [record.offset for record in slow.read(10)] == [1, 2, 3]
    assert [record.offset for record in fast.read(10)] == [3]
    assert [record.offset for record in log.reader("events").read(10)] == [1, 2, 3]
