"""Services that were not started from here, in containers or on a cluster: what they answer."""

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from typing import TypedDict

import httpx
from rich.table import Table

PATIENCE_SECONDS = 5.0


class Readiness(StrEnum):
    """What a service says when asked; ``away`` is a service that says nothing."""

    READY = "ready"
    NOT_READY = "not ready"
    AWAY = "away"


STYLES = {Readiness.READY: "green", Readiness.NOT_READY: "yellow", Readiness.AWAY: "red"}


class ServiceDocument(TypedDict):
    """One service in ``status -o json``."""

    name: str
    url: str
    state: Readiness
    reason: str


class StatusDocument(TypedDict):
    """``status -o json`` of services elsewhere."""

    up: bool
    services: list[ServiceDocument]


async def ask(urls: Mapping[str, str]) -> list[ServiceDocument]:
    """Ask the service at each address whether it is ready, all at once."""
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        return await asyncio.gather(*(_ask(http, name, url) for name, url in urls.items()))


def status_document(services: list[ServiceDocument]) -> StatusDocument:
    up = all(service["state"] is Readiness.READY for service in services)
    return {"up": up, "services": services}


def table(document: StatusDocument) -> Table:
    """A row for each service."""
    rows = Table(box=None, pad_edge=False)
    for heading in ("service", "state", "address", "reason"):
        rows.add_column(heading, overflow="fold")
    for service in document["services"]:
        state = service["state"]
        rows.add_row(
            service["name"], f"[{STYLES[state]}]{state}[/]", service["url"], service["reason"]
        )
    return rows


async def _ask(http: httpx.AsyncClient, name: str, url: str) -> ServiceDocument:
    try:
        response = await http.get(f"{url}/readyz")
        checks: dict[str, str] = response.json()["checks"]
    except httpx.HTTPError as error:
        reason = f"{type(error).__name__} {error}".rstrip()
        return {"name": name, "url": url, "state": Readiness.AWAY, "reason": reason}
    except (ValueError, KeyError, TypeError):
        reason = f"{response.status_code}, not the answer of a service"
        return {"name": name, "url": url, "state": Readiness.AWAY, "reason": reason}
    troubles = [f"{check}: {said}" for check, said in checks.items() if said != "ok"]
    state = Readiness.READY if response.status_code == httpx.codes.OK else Readiness.NOT_READY
    return {"name": name, "url": url, "state": state, "reason": "; ".join(troubles)}
