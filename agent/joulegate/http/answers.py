"""Answers that are built outside of the framework's models."""

from __future__ import annotations

from fastapi import Response
from pydantic_core import to_json


def json_answer(content: object, status: int = 200) -> Response:
    """``content`` as UTF-8 JSON; nan and infinity become null (law 2)."""
    return Response(to_json(content, inf_nan_mode="null"), status, media_type="application/json")
