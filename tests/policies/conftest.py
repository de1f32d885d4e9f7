"""A real daemon on the twin with the example configuration, shared by the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.service import Service
from tests.policies.support.nginx import POLICIES


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """``joulegate run`` with three images a day for free; each test brings tenants of its own."""
    with started(tmp_path_factory.mktemp("daemon")) as service:
        service.until("/v1/throttle", lambda body: "tiers" in body)
        yield service


def started(folder: Path, port: int = 0) -> Service:
    """A daemon that listens."""
    config = POLICIES / "joulegate-throttle.toml"
    arguments = ("--source", "twin", "--config", str(config), "--port", str(port))
    service = Service(folder / "state", *arguments)
    try:
        return service.ready()
    except BaseException:
        service.kill()
        raise
