"""Every bad event and label, once: what is wrong with it, and what each edge has to say of it.

The events are those of ``tests/e2e/payments.yaml``. What one edge calls unparsable, all do: over
HTTP and gRPC that is 400, everything else 422, and on a topic it is the dead letter's reason.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from homeostat.common.errors import Reason

NOW = round(time.time(), 3)
ID, TIME = "transaction_id", "event_time"
GOOD: dict[str, Any] = {
    "transaction_id": "good",
    "event_time": NOW,
    "customer_id": "c1",
    "terminal_id": "t1",
    "amount": 12.5,
    "channel": "web",
}
DEEP = 100_000


@dataclass(frozen=True)
class BadInput:
    """``names`` is what the answer has to contain: the place, or what is wrong with the whole."""

    title: str
    body: bytes
    reason: Reason
    names: str

    def __str__(self) -> str:
        return self.title

    @property
    def status(self) -> int:
        return 400 if self.reason is Reason.UNPARSABLE else 422

    @property
    def fits_a_line(self) -> bool:
        """Whether it can stand among other lines; else it is a body of its own."""
        return bool(self.body.strip()) and b"\n" not in self.body

    @property
    def fits_an_array(self) -> bool:
        """Whether it is JSON at all; else it spoils the array around it."""
        try:
            msgspec.json.decode(b"[%s]" % self.body, type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


def event(**changes: Any) -> bytes:
    """A good event but for the changes."""
    return json.dumps(GOOD | changes).encode()


def written(name: str, literal: str) -> bytes:
    """A good event with a member as literal JSON, which ``json`` would not write."""
    others = json.dumps({key: value for key, value in GOOD.items() if key != name})
    return f'{others[:-1]}, "{name}": {literal}}}'.encode()


def _without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


def _inputs(rows: dict[Reason, list[tuple[str, bytes, str]]]) -> list[BadInput]:
    return [
        BadInput(title, body, reason, names)
        for reason, inputs in rows.items()
        for title, body, names in inputs
    ]


BAD_EVENTS = _inputs(
    {
        Reason.UNPARSABLE: [
            ("malformed JSON", b'{"transaction_id": "x", ', "not JSON"),
            ("text that is no JSON", b"hello", "not JSON"),
            ("a number instead of an object", b"5", "JSON object"),
            ("null instead of an object", b"null", "JSON object"),
            ("a bare NaN", written("amount", "NaN"), "not JSON"),
            ("a number beyond every double", written("amount", "1e999"), "amount"),
            ("an integer of 5,000 digits", written("amount", "1" + "0" * 5000), "amount"),
            ("bytes that are not UTF-8", event().replace(b'"good"', b'"\xff\xfe"'), "not JSON"),
            ("half a surrogate pair", written(ID, r'"\ud800"'), "not JSON"),
            ("a byte order mark", b"\xef\xbb\xbf" + event(), "not JSON"),
            ("UTF-16", event().decode().encode("utf-16"), "not JSON"),
            ("arrays nested without end", b"[" * DEEP, "JSON"),
            ("a field nested too deeply", written("amount", "[" * DEEP + "]" * DEEP), "nested"),
            ("an unknown field nested too deeply", written("x", '{"x":' * DEEP), "nested"),
        ],
        Reason.INVALID: [
            ("no field at all", b"{}", ID),
            ("a missing field", _without("amount"), "amount"),
            ("a mistyped field", event(amount="12"), "amount"),
            ("a null where a value is needed", event(amount=None), "amount"),
            ("a number as an id", event(transaction_id=10**30), ID),
            ("a misspelt field", event(amuont=1), "did you mean 'amount'?"),
            ("an amount below the minimum", event(amount=-1), "amount"),
            ("a category that is not listed", event(channel="fax"), "channel"),
            ("a category with a line break", event(channel="web\n"), "channel"),
            ("an empty id", event(transaction_id=""), ID),
            ("an empty key", event(customer_id=""), "customer_id"),
            ("NUL in an id", event(transaction_id="a\0b"), ID),
            ("an id of 300 characters", event(transaction_id="x" * 300), ID),
            ("a text of 5,000 characters", event(device_id="x" * 5000), "device_id"),
            ("a time without zone", event(event_time="2026-01-01T00:00:00"), TIME),
            ("a time that is none", event(event_time="yesterday"), TIME),
            ("a negative time", event(event_time=-1), TIME),
            ("a time before the year 1", event(event_time="0001-01-01T00:00+14:00"), TIME),
            ("a time after the year 9999", event(event_time="9999-12-31T23:00-14:00"), TIME),
            ("a time in microseconds", event(event_time=NOW * 1e6), TIME),
            ("a time beyond 64 bits", event(event_time=2**64), TIME),
            ("a time beyond every double", written(TIME, "1" + "0" * 400), TIME),
            ("true as a time", event(event_time=True), TIME),
        ],
        Reason.FUTURE: [
            ("an event from the future", event(event_time=NOW + 7200), TIME),
        ],
    }
)

BAD_LABELS = _inputs(
    {
        Reason.UNPARSABLE: [
            ("malformed JSON", b'{"id": "e1", ', "not JSON"),
            ("a bare NaN", b'{"id": "e1", "label": NaN}', "not JSON"),
            ("bytes that are not UTF-8", b'{"id": "\xff", "label": 1}', "not JSON"),
        ],
        Reason.INVALID: [
            ("no field at all", b"{}", "id"),
            ("a label nested too deeply", b'{"id": "e1", "label": ' + b"[" * DEEP, "label"),
            ("a missing label", b'{"id": "e1"}', "label"),
            ("a mistyped label", b'{"id": "e1", "label": "1"}', "label"),
            ("a label between 0 and 1", b'{"id": "e1", "label": 0.5}', "0 or 1"),
            ("a label far away", b'{"id": "e1", "label": 1e308}', "0 or 1"),
            ("an unknown field", b'{"id": "e1", "label": 1, "at": 5}', "at"),
            ("an empty id", b'{"id": "", "label": 1}', "id"),
            ("NUL in an id", b'{"id": "a\\u0000b", "label": 1}', "id"),
            ("an id of 300 characters", b'{"id": "%s", "label": 1}' % (b"x" * 300), "id"),
        ],
    }
)
