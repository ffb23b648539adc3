"""From findings to incidents: one for each cause, opened late, closed late, repeated seldom."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rules:
    """``consecutive`` observations open an incident, and as many clean ones close it.

    After an alert the next of the same cause waits for ``cooldown``, or, while the incident stays
    open, for ``renewal``: by then there is new evidence (mature labels of the drifted time) to
    retrain on.
    """

    consecutive: int
    cooldown: int  # ms of pipeline time
    renewal: int


@dataclass(frozen=True)
class Incident:
    """The state of one cause. ``since`` is the first window of the current run of findings.

    ``subjects`` are the features found in every window of a run that has not opened an incident
    yet: one feature today and another tomorrow are two chances, not one drift.
    """

    is_open: bool = False
    streak: int = 0
    quiet: int = 0
    since: int = 0
    subjects: frozenset[str] = frozenset()
    alerted_at: int | None = None
    alerts: int = 0


def observe(
    incident: Incident, rules: Rules, subjects: frozenset[str], *, start: int, at: int
) -> tuple[Incident, bool]:
    """Take what one window found (nothing: it is clean); says whether an alert is due.

    >>> rules = Rules(consecutive=2, cooldown=0, renewal=1_000)
    >>> amount = frozenset({"amount"})
    >>> once, is_due = observe(Incident(), rules, amount, start=0, at=10)
    >>> is_due, observe(once, rules, amount, start=10, at=20)[1]
    (False, True)
    """
    if not subjects:
        quiet = incident.quiet + 1
        is_open = incident.is_open and quiet < rules.consecutive
        clean = replace(incident, is_open=is_open, streak=0, quiet=quiet, subjects=frozenset())
        return clean, False
    common = incident.subjects & subjects if incident.streak else subjects
    if incident.is_open or (incident.streak and common):
        seen = replace(incident, streak=incident.streak + 1, quiet=0, subjects=common)
    else:
        seen = replace(incident, streak=1, quiet=0, since=start, subjects=subjects)
    wait = rules.renewal if seen.is_open else rules.cooldown
    is_rested = seen.alerted_at is None or at >= seen.alerted_at + wait
    if not is_rested or not (seen.is_open or seen.streak >= rules.consecutive):
        return seen, False
    return replace(seen, is_open=True, alerted_at=at, alerts=seen.alerts + 1), True
