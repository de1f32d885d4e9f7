"""A checkpoint holds everything that the next recommendation depends on."""

from __future__ import annotations

import copy
import json

import pytest
from tests.throttle_contract.plant import Run
from tests.throttle_contract.promises import Json, Talk, observation

from joulegate.throttle.adviser import Adviser, settings_hash
from joulegate.throttle.settings import ThrottleSettings, Tier
from joulegate.throttle.wire import encode

SETTINGS = ThrottleSettings()


def checkpoint_after(lines: list[Json], settings: ThrottleSettings = SETTINGS) -> tuple[Adviser, str]:
    """An adviser after some lines, and its checkpoint as text."""
    adviser = Adviser(settings)
    for seen in lines:
        adviser.advise(seen)
    return adviser, json.dumps(adviser.checkpoint(), allow_nan=False)


@pytest.mark.parametrize("place", [0, 1, 7, 150, 203, 260, 500, 900])
def test_continues_bit_for_bit(melting: Run, place: int) -> None:
    """Through JSON and back, an adviser goes on with the bytes it would have given: cold, in the flash, and settled."""
    adviser, text = checkpoint_after(melting.seen[:place])
    restored = Adviser.restored(SETTINGS, json.loads(text))
    for seen in melting.seen[place : place + 90]:
        assert encode(restored.advise(seen)) == encode(adviser.advise(seen))


def test_continues_after_bad_lines_and_in_the_dark(melting: Run) -> None:
    """A checkpoint after a bad line, with a device gone and the others stale, continues like any other."""
    lines: list[Json] = [*melting.seen[:300]]
    for seen in melting.seen[300:330]:
        blind = [item | {"temperature_c": None} for item in seen["devices"][1:]]
        lines.append(seen | {"devices": blind, "budget": {"energy_j_left": 1e5, "until_t": 900.0}})
    lines.append({"t": None})
    adviser, text = checkpoint_after(lines)
    restored = Adviser.restored(SETTINGS, json.loads(text))
    for seen in melting.seen[330:420]:
        assert encode(restored.advise(seen)) == encode(adviser.advise(seen))


def test_a_checkpoint_is_a_copy(melting: Run) -> None:
    """A checkpoint does not change when the adviser goes on, and taking it changes no answer."""
    adviser, text = checkpoint_after(melting.seen[:250])
    plain = Adviser(SETTINGS)
    for seen in melting.seen[:250]:
        plain.advise(seen)
    kept = adviser.checkpoint()
    frozen = copy.deepcopy(kept)
    for seen in melting.seen[250:270]:
        assert encode(adviser.advise(seen)) == encode(plain.advise(seen))
    assert kept == frozen
    assert json.dumps(frozen) == json.dumps(json.loads(text))


def test_a_checkpoint_is_bounded(melting: Run) -> None:
    """A checkpoint does not grow with the run, with bad lines, or with tiers and devices that come and go."""
    _, early = checkpoint_after(melting.seen[:300])
    adviser, late = checkpoint_after(melting.seen)
    assert len(late) <= 2 * len(early)
    for k in range(3000):
        adviser.advise(
            observation(2000.0 + k, [{"id": f"ghost-{k}"}], arrivals={f"tier-{k}": 1}, queue={f"tier-{k}": 1})
        )
    assert len(json.dumps(adviser.checkpoint())) <= 200_000


def test_newest_is_what_was_said_last(melting: Run) -> None:
    """``newest`` is nothing at first, then the last recommendation."""
    adviser = Adviser(SETTINGS)
    assert adviser.newest is None
    for raw in melting.seen[:3]:
        said = adviser.advise(raw)
        assert adviser.newest == said


def test_observation_is_not_touched(melting: Run) -> None:
    """The observation is read, not changed or kept: changing it afterwards changes no later answer."""
    mine, other = Talk(), Talk()
    first = Adviser(SETTINGS)
    for seen in melting.seen[:30]:
        given = copy.deepcopy(seen)
        first.advise(given)
        assert given == seen
        given["devices"].clear()
        given["arrivals"]["free"] = 1e9
    for seen in melting.seen[:30]:
        mine(seen)
        other(seen)
    seen = melting.seen[30]
    assert encode(first.advise(seen)) == encode(mine.adviser.advise(seen)) == encode(other.adviser.advise(seen))


BROKEN: tuple[object, ...] = ({}, {"version": -1}, {"devices": 3}, {"t": "soon"})


@pytest.mark.parametrize("broken", BROKEN)
def test_checkpoint_that_does_not_fit(broken: Json) -> None:
    """Something that is no checkpoint is a ValueError with a sentence."""
    with pytest.raises(ValueError, match=r"\w"):
        Adviser.restored(SETTINGS, broken)


def test_checkpoint_with_a_part_missing_or_spoilt(melting: Run) -> None:
    """A checkpoint that lacks any member, or holds nonsense in it, is a ValueError, nothing else."""
    _, text = checkpoint_after(melting.seen[:250])
    for key in json.loads(text):
        for spoil in (..., "nonsense", [1], {"x": 1}):
            broken = json.loads(text)
            if spoil is ...:
                del broken[key]
            elif type(spoil) is type(broken[key]):
                continue
            else:
                broken[key] = spoil
            with pytest.raises(ValueError, match=r"\w"):
                Adviser.restored(SETTINGS, broken)


def test_checkpoint_of_another_configuration(melting: Run) -> None:
    """A checkpoint of another configuration does not fit."""
    _, text = checkpoint_after(melting.seen[:50])
    with pytest.raises(ValueError, match=r"\w"):
        Adviser.restored(ThrottleSettings(tiers=(Tier("only"),)), json.loads(text))


def test_hash_of_settings_tells_every_field() -> None:
    """The hash of the configuration differs with every field, and equals itself."""
    changed = [
        ThrottleSettings(),
        ThrottleSettings(tiers=(Tier("pro"),)),
        ThrottleSettings(actuators=("rate",)),
        ThrottleSettings(margin_c=2.5),
        ThrottleSettings(rate_margin_c=3.5),
        ThrottleSettings(host_power_limit_w=100.0),
        ThrottleSettings(ttl_s=11.0),
        ThrottleSettings(poll_after_s=4.0),
        ThrottleSettings(act_after_s=2.0),
        ThrottleSettings(stale_after_s=9.0),
        ThrottleSettings(stale_floor=0.5),
        ThrottleSettings(stale_admit_fraction=0.3),
        ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", 0.02, quota="3/day"))),
        ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", 0.02, tenant_day_max=3))),
        ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", 0.02, tenant_day_min=3))),
        ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", 0.02, deferrable=True))),
        ThrottleSettings(tiers=(Tier("pro"), Tier("plus"), Tier("free", 0.02, defer_max_s=1.0))),
    ]
    assert len({settings_hash(settings) for settings in changed}) == len(changed)
    assert settings_hash(ThrottleSettings()) == settings_hash(ThrottleSettings())
