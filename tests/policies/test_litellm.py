"""The LiteLLM hook: LiteLLM's own base class where it is installed, else a stand-in with the method's signature."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from tests.policies.support.agent import ScriptedAgent
from tests.policies.support.nginx import POLICIES

import joulegate


class CustomLogger:
    """What LiteLLM 1.110.2 has in ``litellm.integrations.custom_logger``, as far as a hook before a call goes."""

    def __init__(self, message_logging: bool = True, **kwargs: Any) -> None:
        self.message_logging = message_logging

    async def async_pre_call_hook(self, user_api_key_dict, cache, data: dict, call_type: str) -> Any:
        """Raise to refuse, return a text to answer with it, or a changed ``data``."""


def sample() -> ModuleType:
    """The sample, loaded as LiteLLM loads it: by its path."""
    spec = importlib.util.spec_from_file_location("joulegate_hook", POLICIES / "litellm" / "joulegate_hook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOK = sample()


def key(**fields: Any) -> SimpleNamespace:
    """LiteLLM's UserAPIKeyAuth, as far as the hook looks at it."""
    known = {"metadata": {}, "team_metadata": None, "team_id": None, "user_id": None, "api_key": "hash-of-a-key"}
    return SimpleNamespace(**(known | fields))


@pytest.fixture
async def agent() -> AsyncIterator[ScriptedAgent]:
    """A well agent that denies free."""
    with ScriptedAgent(denied={"free"}) as scripted:
        yield scripted


@pytest.fixture
async def hook(agent: ScriptedAgent) -> AsyncIterator[Any]:
    """The hook on its base class."""
    known = importlib.util.find_spec("litellm") is not None
    base = importlib.import_module("litellm.integrations.custom_logger").CustomLogger if known else CustomLogger
    async with joulegate.gate(agent.url, timeout_s=5.0) as gate:
        yield HOOK.hook_class(base)(gate)


async def test_a_denied_image_is_a_429(hook: Any):
    """429 with Retry-After as header and, since LiteLLM drops headers, in the text."""
    with pytest.raises(HTTPException) as caught:
        await hook.async_pre_call_hook(key(metadata={"tier": "free"}), None, {"prompt": "x"}, "image_generation")
    assert caught.value.status_code == 429
    assert caught.value.headers["Retry-After"] == "8"
    assert "ask again in 8 s" in caught.value.detail


async def test_an_admitted_image_is_left_as_it_is(hook: Any, agent: ScriptedAgent):
    """An admitted request goes on unchanged; the agent was asked with the key's tier, tenant and the units."""
    data = {"prompt": "x", "n": 2, "size": "2048x1024"}
    asked_by = key(metadata={"tier": "pro"}, team_id="acme")
    assert await hook.async_pre_call_hook(asked_by, None, data, "image_generation") is None
    assert data == {"prompt": "x", "n": 2, "size": "2048x1024"}
    assert b'"tier": "pro", "tenant": "acme", "cost": 4.0' in agent.asked[0].body


@pytest.mark.parametrize("call_type", ["acompletion", "embeddings", "moderation", "aspeech"])
async def test_other_calls_are_not_asked_for(hook: Any, agent: ScriptedAgent, call_type: str):
    """Text and speech are no images: nobody is asked."""
    assert await hook.async_pre_call_hook(key(metadata={"tier": "free"}), None, {}, call_type) is None
    assert agent.asked == []


async def test_a_request_cannot_choose_its_tier(hook: Any, agent: ScriptedAgent):
    """Metadata, user and tier in the request's own body change nothing."""
    data = {"metadata": {"tier": "pro"}, "tier": "pro", "user": "acme"}
    with pytest.raises(HTTPException):
        await hook.async_pre_call_hook(key(metadata={"tier": "free"}), None, data, "aimage_generation")
    assert b'"tier": "free", "tenant": "hash-of-a-key"' in agent.asked[0].body


async def test_without_an_agent_paid_stays_open(hook: Any, agent: ScriptedAgent):
    """The agent is silent: pro goes on, a key without a tier is held to the floor."""
    agent.trouble = "fault"
    for _ in range(5):
        assert await hook.async_pre_call_hook(key(metadata={"tier": "pro"}), None, {}, "image_generation") is None
    await hook.async_pre_call_hook(key(), None, {}, "image_generation")
    with pytest.raises(HTTPException):
        await hook.async_pre_call_hook(key(), None, {}, "image_generation")


@pytest.mark.parametrize(
    ("data", "units"),
    [
        ({}, 1.0),
        ({"n": 3}, 3.0),
        ({"n": 2, "size": "512x512"}, 2.0),
        ({"size": "1024x1536"}, 1.5),
        ({"n": "4", "size": "auto"}, 1.0),
        ({"n": -1, "size": "x"}, 1.0),
        ({"n": True, "size": None}, 1.0),
        ({"size": "9" * 4000 + "x9"}, 1.0),
    ],
)
def test_units(data: dict[str, Any], units: float):
    """Images times size, at least one unit each, and never an exception for what LiteLLM will refuse itself."""
    assert HOOK.cost_of(data) == units


@pytest.mark.parametrize(
    ("fields", "tier", "tenant"),
    [
        ({"metadata": {"tier": "pro"}, "user_id": "u"}, "pro", "u"),
        ({"team_metadata": {"tier": "plus"}, "team_id": "t", "user_id": "u"}, "plus", "t"),
        ({"metadata": None}, None, "hash-of-a-key"),
        ({"metadata": {"tier": 7}, "api_key": None}, None, None),
    ],
)
def test_who_a_key_is(fields: dict[str, Any], tier: str | None, tenant: str | None):
    """The tier is the key's or its team's; the tenant is the team, the user or the key."""
    assert (HOOK.tier_of(key(**fields)), HOOK.tenant_of(key(**fields))) == (tier, tenant)


def test_litellm_sees_the_hook():
    """LiteLLM calls a hook that stands in the class itself, by the names of its arguments."""
    made = HOOK.hook_class(CustomLogger)
    assert issubclass(made, CustomLogger)
    assert "async_pre_call_hook" in vars(made), "LiteLLM 1.110 looks into vars() of the class"
    names = list(inspect.signature(made.async_pre_call_hook).parameters)
    assert names == ["self", "user_api_key_dict", "cache", "data", "call_type"]
    with pytest.raises(AttributeError):
        HOOK.nothing  # noqa: B018
