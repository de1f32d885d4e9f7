"""LiteLLM proxy hook: a request for images asks Joulegate first, and is a 429 when it may not run now.

    litellm_settings:
      callbacks: joulegate_hook.hook        # this file beside config.yaml, and joulegate installed beside litellm

The tier and tenant come from the key, never from the request: give keys metadata such as {"tier": "pro"}; the tenant is
the key's team, else its user, else the key. $JOULEGATE_URL says where the agent is. Without an answer paid tiers stay
open and the last tier is held to its floor.

LiteLLM 1.110's image routes keep the status and text of what a hook raises and drop its headers, Retry-After too, so
the seconds stand in the text as well. Tests run this class on a stand-in of CustomLogger; by hand it was run in LiteLLM
1.110.2's own proxy.
"""

# ruff: noqa: INP001 - LiteLLM loads this file by its path

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException

import joulegate

IMAGE_CALLS = frozenset({"image_generation", "aimage_generation", "image_edit", "aimage_edit"})
REFERENCE_PIXELS = 1024 * 1024
"""One unit of cost is one image of this size; LiteLLM's n and size say how many units a request is."""


def hook_class(base: type) -> type:
    """The hook on ``base``, LiteLLM's CustomLogger; an instance takes what ``joulegate.gate()`` gives.

    The method stands in the class itself: LiteLLM looks into ``vars()`` of the class and calls no inherited one.
    """

    class JoulegateHook(base):  # type: ignore[misc]
        def __init__(self, gate: Any) -> None:
            super().__init__()
            self.gate = gate

        async def async_pre_call_hook(
            self,
            user_api_key_dict: Any,
            cache: Any,  # noqa: ARG002 - LiteLLM's signature
            data: dict[str, Any],
            call_type: str,
        ) -> dict[str, Any] | None:
            """Raise a 429 for a request that may not run now; ``None`` leaves it as it is."""
            if call_type not in IMAGE_CALLS:
                return None
            tier, tenant = tier_of(user_api_key_dict), tenant_of(user_api_key_dict)
            decision = await self.gate.adecide(tier, tenant, cost_of(data))
            if decision.allow:
                return None
            wait = decision.headers.get("Retry-After")
            detail = decision.detail if wait is None else f"{decision.detail}; ask again in {wait} s"
            raise HTTPException(decision.status, detail, dict(decision.headers))

    return JoulegateHook


def tier_of(key: Any) -> str | None:
    """The tier that an administrator gave the key, or its team; without one, the agent takes its last."""
    for metadata in (getattr(key, "metadata", None), getattr(key, "team_metadata", None)):
        tier = metadata.get("tier") if isinstance(metadata, Mapping) else None
        if isinstance(tier, str) and tier:
            return tier
    return None


def tenant_of(key: Any) -> str | None:
    """Whose quota it is: the key's team, user, or (LiteLLM's hash of) the key itself."""
    names = (getattr(key, name, None) for name in ("team_id", "user_id", "api_key"))
    return next((name for name in names if isinstance(name, str) and name), None)


def cost_of(data: Mapping[str, Any]) -> float:
    """Units: images times their size in reference images, at least 1 each. What LiteLLM would refuse counts as 1."""
    count = data.get("n")
    images = count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 1
    width, _, height = str(data.get("size", "")).partition("x")
    pixels = int(width) * int(height) if width.isdecimal() and height.isdecimal() and len(width + height) < 12 else 0
    return images * max(1.0, pixels / REFERENCE_PIXELS)


def __getattr__(name: str) -> Any:
    """``hook``, made when LiteLLM asks for it: only then is LiteLLM imported."""
    if name != "hook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from litellm.integrations.custom_logger import CustomLogger

    made = hook_class(CustomLogger)(joulegate.gate())
    globals()["hook"] = made
    return made
