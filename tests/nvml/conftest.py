"""The stand-in library, compiled once a run, and fresh simulated GPUs for each test."""

import os

import pytest
from tests.nvml.stand_in import CompilerMissing, StandIn, build_library


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Path of the compiled stand-in for libnvidia-ml.so.1; skipped without gcc, failed in CI."""
    try:
        return build_library(tmp_path_factory.mktemp("nvml"))
    except CompilerMissing as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


@pytest.fixture
def stand_in(library, tmp_path):
    """No GPU yet: a test adds its own."""
    stand_in = StandIn(library, tmp_path / "gpus")
    yield stand_in
    stand_in.close()
