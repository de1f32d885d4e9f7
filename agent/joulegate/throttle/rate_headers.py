"""How a decision looks in HTTP: RateLimit-Policy, RateLimit and Retry-After, and the members of its problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import blake2b

from joulegate.throttle.decision import Decision, RateWindow, Verdict

JITTER = 5
"""One part in five: a refusal's wait is prolonged by up to 20 %, so that not everyone comes back at once."""

_INTEGER_MAX = 999_999_999_999_999
"""RFC 9651, 3.3.1: integers have at most 15 digits."""

_REGISTRY = "https://iana.org/assignments/http-problem-types#"
_PROBLEMS = {
    Verdict.QUOTA: ("quota-exceeded", "Request cannot be satisfied as assigned quota has been exceeded"),
    Verdict.BAD_REQUEST: (None, "Request cannot be judged"),
}
_REDUCED = ("temporary-reduced-capacity", "Request cannot be satisfied due to temporary server capacity constraints")


def rate_headers(decision: Decision, tenant: str | None) -> list[tuple[str, str]]:
    """The fields of draft-ietf-httpapi-ratelimit-headers-11 for an answer that no cache may keep.

    ``RateLimit-Policy: "free";q=34;w=60, "free-day";q=3;w=86400``, ``RateLimit: "free";r=5;t=9, "free-day";r=2;t=3600``
    and, on a no that time can turn into a yes, ``Retry-After: 11``: whole seconds, not before the violated window ends,
    with up to 20 % jitter that depends on tenant and decision alone. A field without an item is left out.
    """
    windows = [window for window in (decision.window, decision.quota) if window is not None]
    fields = []
    if windows:
        fields.append(
            ("RateLimit-Policy", _list(windows, lambda w: f";q={_integer(w.q)};w={max(1, _integer(w.window_s))}"))
        )
        fields.append(("RateLimit", _list(windows, lambda w: f";r={_integer(w.remaining)};t={_integer(w.t_s)}")))
    if not decision.allow and decision.reason != Verdict.BAD_REQUEST:
        fields.append(("Retry-After", str(_retry_after_s(decision, tenant))))
    return fields


def problem_members(decision: Decision, status: int = 429) -> dict[str, object]:
    """Members of the RFC 9457 problem of a no: the draft's types, the policies violated, the decision behind it."""
    name, title = _PROBLEMS.get(Verdict(decision.reason), _REDUCED)
    members: dict[str, object] = {
        "type": "about:blank" if name is None else _REGISTRY + name,
        "title": title,
        "status": status,
        "detail": decision.detail,
        "reason": decision.reason,
        "tier": decision.tier,
        "decision_id": decision.decision_id,
    }
    if name is not None:
        violated = decision.quota if decision.reason == Verdict.QUOTA else decision.window
        members["violated-policies"] = [decision.tier if violated is None else violated.policy]
    return members


def _retry_after_s(decision: Decision, tenant: str | None) -> int:
    violated = decision.quota if decision.reason == Verdict.QUOTA else decision.window
    base_s = max(1, math.ceil(decision.retry_after_s), 0 if violated is None else violated.t_s)
    seed = f"{tenant or ''}\0{decision.decision_id or ''}".encode("utf-8", "surrogatepass")
    return _integer(base_s + int.from_bytes(blake2b(seed, digest_size=8).digest()) % (base_s // JITTER + 1))


def _list(windows: list[RateWindow], parameters: Callable[[RateWindow], str]) -> str:
    return ", ".join(_string(window.policy) + parameters(window) for window in windows)


def _string(name: str) -> str:
    """An RFC 9651 String; what is not printable ASCII, and the percent sign, is percent-encoded as UTF-8."""
    octets = name.encode("utf-8", "surrogatepass")
    plain = "".join(chr(o) if 0x20 <= o < 0x7F and o != 0x25 else f"%{o:02X}" for o in octets)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _integer(value: int) -> int:
    return min(max(0, value), _INTEGER_MAX)
