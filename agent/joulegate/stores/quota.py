"""Quotas: what each tenant has had of a tier in the running window, counted in this process or in Redis."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeVar
from urllib.parse import urlsplit

from limits import parse_many
from limits.aio.storage import RedisStorage
from limits.errors import ConfigurationError, StorageError

from joulegate.throttle.decision import QuotaState
from joulegate.throttle.settings import Tier

MEMORY = "memory"
MAX_TENANTS = 500_000
"""Tenants counted one by one in this process (some 90 MB); eight GPUs at 0.4 images a second start 276,480 a day."""

PATIENCE_S = 0.1
"""The longest wait for Redis before this process counts by itself."""

RETRY_S = 1.0
"""A Redis that failed is asked again after this long, by one request."""

_QUEUE = 5
"""Waits for a connection may take this many times the wait for an answer."""

_CONNECTIONS = 8
_DAY_S = 86_400
_MILLI = 1000
"""Costs are counted in thousandths of a unit, rounded up."""

_GRACE_S = 60
_COMMON_COUNTERS = 65_536
_NO_LIMIT = 2**53
_PREFIX = "joulegate:quota"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class QuotaRule:
    """``amount`` units per window of ``length_s`` seconds; ``policy`` names the window (day, 2hour).

    A ``daily`` window begins at midnight of the tenant's zone, so it lasts 23 or 25 hours when clocks change; any other
    begins at whole multiples of its length since 1970, UTC.
    """

    policy: str
    amount: int
    length_s: int
    daily: bool


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a rule: its name in keys (the local date of a day), and its bounds in Unix seconds."""

    name: str
    start_s: float
    end_s: float

    @property
    def expiry_s(self) -> int:
        """How long a count that begins in this window must be kept, clocks of several hosts considered."""
        return math.ceil(self.end_s - self.start_s) + _GRACE_S


@dataclass(frozen=True, slots=True)
class QuotaStatus:
    """How quotas are counted: ``shared`` is host and port of Redis, ``None`` where this process is all there is.

    ``faults`` counts failures of Redis, ``last_fault`` is the newest in one line. ``tenants`` have a counter of their
    own in this process; ``crowded`` says that later ones share some, and may be refused too early.
    """

    shared: str | None
    shared_up: bool
    faults: int
    last_fault: str | None
    tenants: int
    crowded: bool


@lru_cache(maxsize=256)
def parsed(notation: str) -> tuple[QuotaRule, ...]:
    """Rules from the notation of the limits library (``3/day``, ``10/hour;3/day``), the smallest of each window.

    Raises ValueError where that is not one.
    """
    rules: dict[str, QuotaRule] = {}
    for item in parse_many(notation):
        policy = f"{item.multiples if item.multiples > 1 else ''}{item.GRANULARITY.name}"
        rule = QuotaRule(policy, item.amount, item.get_expiry(), daily=policy == "day")
        rules[policy] = min(rule, rules.get(policy, rule), key=lambda one: one.amount)
    return tuple(rules.values())


def rules_of(tier: Tier, images_per_tenant_day: int | None) -> tuple[QuotaRule, ...]:
    """The quotas of a tier; within configured bounds, the recommendation's number a day is that of the day."""
    rules = parsed(tier.quota) if tier.quota else ()
    if tier.tenant_day_min is None and tier.tenant_day_max is None:
        return rules
    static = next((rule.amount for rule in rules if rule.daily), tier.tenant_day_max)
    amount = static if images_per_tenant_day is None else images_per_tenant_day
    if amount is None:
        return rules
    if tier.tenant_day_max is not None:
        amount = min(amount, tier.tenant_day_max)
    daily = QuotaRule("day", max(amount, tier.tenant_day_min or 0), _DAY_S, daily=True)
    return (*(rule for rule in rules if not rule.daily), daily)


def window_of(rule: QuotaRule, wall_s: float, zone: tzinfo) -> Window:
    """The window that ``wall_s`` (Unix seconds) lies in, for a tenant of that zone."""
    if not rule.daily:
        start_s = wall_s // rule.length_s * rule.length_s
        return Window(f"{rule.policy}-{start_s:.0f}", start_s, start_s + rule.length_s)
    day = datetime.fromtimestamp(math.floor(wall_s), zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return Window(day.date().isoformat(), day.timestamp(), (day + timedelta(days=1)).timestamp())


@dataclass(slots=True)
class _Counts:
    expires_s: float
    own: dict[str, int] = field(default_factory=dict)
    common: dict[str, int] = field(default_factory=dict)


class MemoryCounts:
    """Counts of this process, at most ``max_keys``; O(1) a hit, and a window's counts go all at once when it is over.

    The library's own memory storage looks at every key at every hit (13.8 ms with 100,000 keys, measured with limits
    5.8), hence this. When it is full, keys that are new to a window share 65,536 counters by their hash: somebody may
    be refused too early then, nobody is let in too often.
    """

    def __init__(self, clock: Callable[[], float], max_keys: int = MAX_TENANTS) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._windows: dict[str, _Counts] = {}

    @property
    def keys(self) -> int:
        """Keys with a counter of their own."""
        return sum(len(counts.own) for counts in self._windows.values())

    @property
    def crowded(self) -> bool:
        """Whether some keys share counters."""
        return any(counts.common for counts in self._windows.values())

    def take(self, key: str, limit: int, expiry_s: int, amount: int) -> bool:
        """Add ``amount`` to the count of ``key`` (window/name) if it stays within ``limit``."""
        count = self.count(key)
        if count + amount > limit:
            return False
        self._put(key, count + amount, expiry_s)
        return True

    def count(self, key: str) -> int:
        """The count of ``key``."""
        window, _, name = key.partition("/")
        counts = self._windows.get(window)
        if counts is None or counts.expires_s <= self._clock():
            return 0
        own = counts.own.get(name)
        return counts.common.get(_common(name), 0) if own is None else own

    def raise_to(self, key: str, count: int, expiry_s: int) -> None:
        """Make the count of ``key`` at least ``count``."""
        if count > self.count(key):
            self._put(key, count, expiry_s)

    def _put(self, key: str, count: int, expiry_s: int) -> None:
        window, _, name = key.partition("/")
        counts = self._windows.get(window)
        if counts is None or counts.expires_s <= self._clock():
            counts = self._begin(window, expiry_s)
        if name in counts.own or self.keys < self._max_keys:
            counts.own[name] = count
        else:
            counts.common[_common(name)] = count

    def _begin(self, window: str, expiry_s: int) -> _Counts:
        now_s = self._clock()
        self._windows = {name: counts for name, counts in self._windows.items() if counts.expires_s > now_s}
        return self._windows.setdefault(window, _Counts(now_s + expiry_s))


def _common(name: str) -> str:
    return str(int(name, 16) % _COMMON_COUNTERS)


class SharedCounts:
    """Counts in Redis, tested and taken in one step by the library's script; after a failure left alone for a while.

    A window lasts less than the expiry that goes with its key, so the script's sliding window never slides.
    """

    def __init__(self, url: str, clock: Callable[[], float], patience_s: float = PATIENCE_S) -> None:
        self.place = _place(url)
        self.faults = 0
        self.last_fault: str | None = None
        self.up = True
        self._clock = clock
        self._patience_s = patience_s
        self._retry_at_s = -math.inf
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._storage, self._disconnect = _storage(url, self.place, patience_s)

    async def take(self, key: str, limit: int, expiry_s: int, amount: int, owed: int) -> tuple[bool, int] | None:
        """Add ``owed``, then ``amount`` if that stays within ``limit``; whether it did, and the count.

        ``None`` where Redis does not answer.
        """

        async def call() -> tuple[bool, int]:
            if owed:
                await self._storage.acquire_sliding_window_entry(key, _NO_LIMIT, expiry_s, owed)
            taken = await self._storage.acquire_sliding_window_entry(key, limit, expiry_s, amount)
            return taken, (await self._storage.get_sliding_window(key, expiry_s))[2]

        return await self._ask(call)

    async def count(self, key: str, expiry_s: int) -> int | None:
        """The count of ``key``; ``None`` where Redis does not answer."""

        async def call() -> int:
            return (await self._storage.get_sliding_window(key, expiry_s))[2]

        return await self._ask(call)

    async def close(self) -> None:
        """Close every connection."""
        await self._disconnect()

    async def _ask(self, call: Callable[[], Awaitable[_T]]) -> _T | None:
        # Waiting for a turn is not waiting for Redis: a burst of requests must not look like an outage.
        try:
            async with asyncio.timeout(_QUEUE * self._patience_s):
                await self._slots.acquire()
        except TimeoutError:
            self._failed(f"no connection was free within {_QUEUE * self._patience_s:g} s")
            return None
        try:
            if self._clock() < self._retry_at_s:
                return None
            if not self.up:
                self._retry_at_s = self._clock() + RETRY_S
            async with asyncio.timeout(self._patience_s):
                answer = await call()
        except TimeoutError:
            self._failed(f"no answer within {self._patience_s:g} s")
            return None
        except StorageError as error:
            self._failed(" ".join(str(error.storage_error).split()))
            return None
        finally:
            self._slots.release()
        self.up, self._retry_at_s = True, -math.inf
        return answer

    def _failed(self, why: str) -> None:
        self.up, self._retry_at_s = False, self._clock() + RETRY_S
        self.faults += 1
        self.last_fault = (
            f"redis at {self.place} does not count quotas: {why}; until it does, this process counts alone"
        )


def _place(url: str) -> str:
    """Host and port of the address, without user and password. Raises ValueError where they are missing."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.scheme not in {"redis", "rediss"}:
        raise ValueError("throttle.quota_storage is not an address such as redis://HOST:6379/0; give one, or memory")
    return f"{host}:{port}"


def _storage(url: str, place: str, patience_s: float) -> tuple[RedisStorage, Callable[[], Awaitable[None]]]:
    try:
        from redis.asyncio import BlockingConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
    except ImportError as error:
        raise ValueError(
            f"throttle.quota_storage at {place} needs the redis package; pip install 'joulegate[fleet]'"
        ) from error
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=patience_s,
            socket_timeout=patience_s,
            socket_connect_timeout=patience_s,
            retry=Retry(NoBackoff(), 0),
        )
        options: dict[str, Any] = {"connection_pool": pool, "implementation": "redispy", "key_prefix": _PREFIX}
        storage = RedisStorage(f"async+{url}", wrap_exceptions=True, **options)
    except (ConfigurationError, RedisError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"throttle.quota_storage at {place} cannot be used: {why}; mend the address") from error
    return storage, pool.disconnect


@dataclass(frozen=True, slots=True)
class _Counter:
    """One rule for one tenant, now."""

    rule: QuotaRule
    key: str
    expiry_s: int
    resets_in_s: float

    @property
    def limit(self) -> int:
        return self.rule.amount * _MILLI

    def state(self, count: int, *, admitted: bool) -> QuotaState:
        left = max(0, self.limit - count) / _MILLI
        return QuotaState(self.rule.policy, self.rule.amount, self.rule.length_s, left, self.resets_in_s, admitted)


class Quotas:
    """Counts units per tenant, tier and window; a changed amount keeps the count.

    ``storage`` is ``memory`` or the URL of a Redis that several hosts share. While that does not answer, this process
    counts on from what it knows (neither open nor closed); what it then admits to a tenant is added when Redis is back
    and the tenant asks again. A Redis that restarts empty has forgotten the rest. Tenants are kept as hashes only.
    An answer of Redis is waited for ``patience_s`` seconds. Lives in one event loop.

    Raises ValueError, in one line, for a ``storage`` that cannot be used.
    """

    def __init__(
        self,
        storage: str = MEMORY,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        max_tenants: int = MAX_TENANTS,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._wall_clock = wall_clock
        self._own = MemoryCounts(clock, max_tenants)
        self._owed = MemoryCounts(clock, max_tenants)
        self._shared = None if storage == MEMORY else SharedCounts(storage, clock, patience_s)

    async def take(
        self, rules: Sequence[QuotaRule], tier: str, tenant: str | None, cost: float, zone: tzinfo
    ) -> QuotaState | None:
        """Take ``cost`` units from every rule, or from none; the state of the rule that binds first.

        ``None`` without rules. Callers without a tenant share one count.
        """
        amount = _milli(cost)
        states: list[QuotaState] = []
        taken: list[_Counter] = []
        for counter in self._counters(rules, tier, tenant, zone):
            admitted, count = await self._take(counter, amount)
            states.append(counter.state(count, admitted=admitted))
            if not admitted:
                for other in taken:
                    await self._add(other, -amount)
                return states[-1]
            taken.append(counter)
        return _tightest(states)

    async def peek(
        self, rules: Sequence[QuotaRule], tier: str, tenant: str | None, cost: float, zone: tzinfo
    ) -> QuotaState | None:
        """What ``take`` would say; nothing is taken."""
        amount = _milli(cost)
        states = []
        for counter in self._counters(rules, tier, tenant, zone):
            count = await self._count(counter)
            states.append(counter.state(count, admitted=count + amount <= counter.limit))
        return _tightest(states)

    async def refund(
        self, rules: Sequence[QuotaRule], tier: str, tenant: str | None, cost: float, zone: tzinfo
    ) -> None:
        """Give back ``cost`` units that were taken in the running windows and came to nothing."""
        for counter in self._counters(rules, tier, tenant, zone):
            await self._add(counter, -_milli(cost))

    def status(self) -> QuotaStatus:
        """How quotas are counted now."""
        shared = self._shared
        return QuotaStatus(
            shared=None if shared is None else shared.place,
            shared_up=shared is not None and shared.up,
            faults=0 if shared is None else shared.faults,
            last_fault=None if shared is None else shared.last_fault,
            tenants=self._own.keys,
            crowded=self._own.crowded,
        )

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._shared is not None:
            await self._shared.close()

    def _counters(self, rules: Sequence[QuotaRule], tier: str, tenant: str | None, zone: tzinfo) -> list[_Counter]:
        wall_s = self._wall_clock()
        counters = []
        for rule in rules:
            window = window_of(rule, wall_s, zone)
            key = f"{window.name}/{_pseudonym(tier, rule.policy, tenant)}"
            counters.append(_Counter(rule, key, window.expiry_s, window.end_s - wall_s))
        return counters

    async def _take(self, counter: _Counter, amount: int) -> tuple[bool, int]:
        key, expiry_s = counter.key, counter.expiry_s
        if self._shared is not None:
            # Taken off first, since two requests of one tenant may be on their way at once.
            owed = self._owed.count(key)
            self._owed.take(key, _NO_LIMIT, expiry_s, -owed)
            answer = await self._shared.take(key, counter.limit, expiry_s, amount, owed)
            if answer is not None:
                self._own.raise_to(key, answer[1], expiry_s)
                return answer
            self._owed.take(key, _NO_LIMIT, expiry_s, owed)
        admitted = self._own.take(key, counter.limit, expiry_s, amount)
        if admitted and self._shared is not None:
            self._owed.take(key, _NO_LIMIT, expiry_s, amount)
        return admitted, self._own.count(key)

    async def _count(self, counter: _Counter) -> int:
        if self._shared is not None:
            count = await self._shared.count(counter.key, counter.expiry_s)
            if count is not None:
                return count + self._owed.count(counter.key)
        return self._own.count(counter.key)

    async def _add(self, counter: _Counter, amount: int) -> None:
        self._own.take(counter.key, _NO_LIMIT, counter.expiry_s, amount)
        if self._shared is not None:
            answer = await self._shared.take(counter.key, _NO_LIMIT, counter.expiry_s, amount, 0)
            if answer is None:
                self._owed.take(counter.key, _NO_LIMIT, counter.expiry_s, amount)


def _milli(cost: float) -> int:
    return math.ceil(cost * _MILLI - 1e-9)


def _tightest(states: Sequence[QuotaState]) -> QuotaState | None:
    return min(states, key=lambda state: state.remaining, default=None)


def _pseudonym(tier: str, policy: str, tenant: str | None) -> str:
    text = "\0".join((tier, policy, tenant or ""))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, person=b"joulegate.quota").hexdigest()
