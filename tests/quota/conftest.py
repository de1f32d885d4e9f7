"""A Redis for the tests that count in one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.quota.redis_server import RedisServer


@pytest.fixture
def redis(
    require_program: Callable[[str, str], str],
    require_module: Callable[[str, str], object],
    free_port: Callable[[], int],
    tmp_path: Path,
) -> Iterator[RedisServer]:
    """A running redis-server, stopped afterwards."""
    require_module("redis", "fleet")
    server = RedisServer(require_program("redis-server", "redis-server"), free_port(), tmp_path)
    try:
        yield server.start()
    finally:
        server.kill()
