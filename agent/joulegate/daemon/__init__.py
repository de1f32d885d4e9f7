"""Wiring, loop and jobs."""
