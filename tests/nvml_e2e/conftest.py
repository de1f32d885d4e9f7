"""The stand-in library, compiled once a run, for simulated boards behind a real daemon."""

from tests.nvml.conftest import library, stand_in

__all__ = ["library", "stand_in"]
