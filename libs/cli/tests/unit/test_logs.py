"""Reading logs while they are written."""

from pathlib import Path

from homeostat.cli.stack.logs import Log


def test_the_last_lines_come_first_and_then_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "router.log"
    path.write_text("one\ntwo\nthree\n")
    log = Log("router", path)

    assert log.last(2) == ["two", "three"]
    with path.open("a") as file:
        file.write("four\nhalf a li")
    assert log.fresh() == ["four"]
    with path.open("a") as file:
        file.write("ne\n")
    assert log.fresh() == ["half a line"]
    assert log.fresh() == []


def test_a_log_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "router.log"
    path.write_text("a long first line\n")
    log = Log("router", path)
    log.last(10)

    path.write_text("new\n")

    assert log.fresh() == ["new"]
