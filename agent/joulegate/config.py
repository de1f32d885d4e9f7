"""Settings: flags over ``JOULEGATE_*`` environment over a TOML file over defaults, frozen, all faults listed at once.

A nested key is written ``http.port`` here, ``port`` under ``[http]`` in TOML, ``JOULEGATE_HTTP__PORT`` in the
environment and ``--port`` as a flag. Every field's description completes the sentence "give ...": it is what a fault
tells the reader to do, and the comment above the key in ``render``.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from platformdirs import user_state_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from joulegate.sources.gpu_model import FAULT_KINDS, FaultKind
from joulegate.throttle.settings import DEFAULT_TIERS, ThrottleSettings, Tier

log = logging.getLogger(__name__)

ENV_PREFIX = "JOULEGATE_"
SOCKET_VARIABLE = "JOULEGATE_SOCKET"
DEBUG_VARIABLE = "JOULEGATE_DEBUG"
SOCKET_NAME = "joulegate.sock"
SOCKET_PATH_MAX_BYTES = 107
"""``sun_path`` holds 108 bytes with its closing zero (unix(7))."""

SOURCES = ("auto", "nvml", "rapl", "model", "twin")
REPLAY = "replay:"

NEAR = 0.7
"""How alike two names are (difflib's ratio) for one to be offered instead of the other; "throttle" is 0.67 "http"."""

KeyPath = tuple[str, ...]


class ConfigFault(Exception):
    """The settings cannot be used. ``lines`` holds every fault found, one line each: where, key, what, what to do."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def _plain_number(value: object) -> object:
    # Pydantic reads true as 1, and says of nan that it is above the largest allowed value.
    if isinstance(value, bool) or (isinstance(value, float | str) and _is_not_finite(value)):
        raise ValueError(f"{_shown(value)} is not a finite number")
    return value


def _is_not_finite(value: float | str) -> bool:
    try:
        return not math.isfinite(float(value))
    except ValueError:
        return False


def _full_path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("a path cannot hold a zero byte")
    try:
        return value.expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{_shown(str(value))}: {error}") from error


def _socket_path(value: Path) -> Path:
    length_bytes = len(os.fsencode(value))
    if length_bytes > SOCKET_PATH_MAX_BYTES:
        raise ValueError(f"the path has {length_bytes} bytes where a unix socket allows {SOCKET_PATH_MAX_BYTES}")
    return value


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else _plain_number(value)


def _comma_list(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A fault of the twin: seconds from the start, how long (without end: infinite), and the device (all: ``None``)."""

    kind: FaultKind
    after_s: float
    for_s: float
    device: str | None


_FAULT = re.compile(r"(?P<kind>[a-z_]+)@(?P<after>\d+(\.\d+)?)(\+(?P<for>\d+(\.\d+)?))?(:(?P<device>\S+))?")


def read_fault(text: str) -> PlannedFault:
    """``lost@30+10:twin-0``: twin-0 is lost from 30 s after the start for 10 s. Raises ``ValueError``."""
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ValueError(f"{_shown(text)} is not a fault such as lost@30+10:twin-0")
    kind = next((known for known in FAULT_KINDS if known == match["kind"]), None)
    if kind is None:
        raise ValueError(f"{_shown(text)}: no fault is called {match['kind']}{_nearest(match['kind'], [*FAULT_KINDS])}")
    for_s = math.inf if match["for"] is None else float(match["for"])
    return PlannedFault(kind, float(match["after"]), for_s, match["device"])


def _known_faults(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        read_fault(value)
    return values


Whole = Annotated[int, BeforeValidator(_plain_number)]
Number = Annotated[float, BeforeValidator(_plain_number)]
FullPath = Annotated[Path, AfterValidator(_full_path)]


class Table(BaseModel):
    """One TOML table: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpSettings(Table):
    """Where the daemon listens."""

    host: str = Field("127.0.0.1", min_length=1, description="an address or host name to listen on")
    hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        (), description='a list of more names under which an agent on loopback answers, such as its gateway, or ["*"]'
    )
    port: Whole = Field(9288, ge=0, le=65535, description="a TCP port from 0 to 65535 (0 takes any free one)")


class SocketSettings(Table):
    """Where pipelines of other processes reach the daemon."""

    path: Annotated[FullPath, AfterValidator(_socket_path)] = Field(description="a short path for the unix socket")


class MeteringSettings(Table):
    """How readings become joules (notes on measurement, sections 6.2 and 6.3)."""

    idle_policy: Literal["separate", "marginal"] = Field(
        "separate",
        description="separate (running requests share the idle power) or marginal (requests pay dynamic energy only)",
    )
    poll_s: Annotated[float | None, BeforeValidator(_auto_is_none)] = Field(
        None,
        ge=0.01,
        le=10.0,
        description='"auto" (each source knows its own) or the shortest time in s between polls, from 0.01 to 10',
    )
    lag_ms: Annotated[float | None, BeforeValidator(_auto_is_none)] = Field(
        None,
        ge=0,
        le=2000,
        description='"auto" (learned per device) or the lateness of the energy counter in ms, from 0 to 2000',
    )
    foreign_tolerance: Number = Field(
        0.15, ge=0, le=10, description="the excess over the model that is still a request's, from 0 to 10 (0.15 = 15 %)"
    )
    hold_s: Number = Field(
        2.0, ge=0, le=300, description="how long in s readings wait for spans that arrive late, from 0 to 300"
    )
    slots: Whole | None = Field(
        None, ge=1, le=1024, description="how many requests a server works on at once, to infer starts (1 to 1024)"
    )


class TwinSettings(Table):
    """The simulated GPUs of ``source = "twin"``."""

    gpus: Whole = Field(1, ge=1, le=64, description="a number of simulated GPUs from 1 to 64")
    profile: str = Field(
        "H100", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a GPU profile's name, such as H100"
    )
    seed: Whole = Field(0, ge=0, description="a whole number that makes a run repeatable")
    faults: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list), AfterValidator(_known_faults)] = Field(
        (),
        description="a list of faults such as lost@30+10:twin-0, which is kind, seconds from the start, how long (else "
        "for ever) and device (else all), in the environment separated by commas",
    )

    def planned_faults(self) -> tuple[PlannedFault, ...]:
        """``faults``, read; the kinds are ``sources.gpu_model.FAULT_KINDS``."""
        return tuple(map(read_fault, self.faults))


Kilograms = Annotated[float | tuple[float, float, float] | None, Field(union_mode="left_to_right")]


class InstrumentSettings(Table):
    """A contract that the market-based figure may count."""

    kind: str = Field(description="what it is: ppa, certificate, tariff")
    share: Number = Field(ge=0, le=1, description="the part of the site's consumption that it covers, from 0 to 1")
    g_per_kwh: Number = Field(ge=0, le=3000, description="its intensity in g/kWh, from 0 to 3000")
    source: str = Field(min_length=1, description="the name of the contract or registry")


class SiteSettings(Table):
    """Where the hardware stands and what is known of it; nothing has a hidden default, a figure is missing instead."""

    country: str | None = Field(None, description="the country, ISO 3166-1 alpha-3 such as DEU")
    region: str | None = Field(None, description="a region of the country that the factor set knows")
    zone: str | None = Field(None, description="a grid zone such as DE")
    cloud_region: str | None = Field(None, description="a cloud region such as gcp/europe-west3")
    scope: Literal["direct", "life-cycle"] | None = Field(None, description="direct or life-cycle: one convention only")
    pue: Number | None = Field(None, description="the yearly mean power usage effectiveness, from 1 to 5")
    wue_onsite_l_per_kwh: Number | None = Field(None, description="litres of water on site per kWh of IT energy")
    wue_offsite_l_per_kwh: Number | None = Field(None, description="litres of water per kWh in power generation")
    price_per_kwh: Number | None = Field(None, description="the price of electricity per kWh")
    currency: str | None = Field(None, description="its currency, ISO 4217 such as EUR")
    gpu_embodied_kg: Kilograms = Field(None, description="kgCO2e of making one GPU: one number, or low, central, high")
    server_embodied_kg: Kilograms = Field(None, description="kgCO2e of making one server without its GPUs")
    gpus_per_server: Whole | None = Field(None, description="GPUs in a server")
    lifetime_years: Number | None = Field(None, description="years that the hardware is used")
    utilization: Number | None = Field(None, description="the share of reserved time in which the GPUs work")
    idle_w: Number | None = Field(None, description="the power of one idle GPU in W")
    residual_g_per_kwh: Number | None = Field(None, description="the residual mix in g/kWh")
    instruments: tuple[InstrumentSettings, ...] = Field((), description="contracts for the market-based figure")


class GridSettings(Table):
    """Where the carbon intensity of the grid is asked for; nobody is asked when no provider is named."""

    provider: str | None = Field(
        None, description="electricity-maps, watttime, gb-carbon-intensity or entsoe (none: the factor set only)"
    )
    zone: str | None = Field(None, description="the place in the provider's words, such as DE")
    country: str | None = Field(None, description="the country for the yearly figure; site.country if not set")
    token: SecretStr | None = Field(None, description="the provider's token, best as JOULEGATE_GRID__TOKEN")
    username: SecretStr | None = Field(None, description="the user name, for watttime")
    base_url: str | None = Field(None, description="another address of the provider")
    factor_type: Literal["lifecycle", "direct"] = Field("lifecycle", description="lifecycle or direct")
    refresh_s: Number = Field(300.0, ge=60, le=86_400, description="seconds between questions, from 60 to 86400")
    timeout_s: Number = Field(5.0, ge=0.1, le=60, description="the longest wait in s for an answer, from 0.1 to 60")


def _known_zone(value: str) -> str:
    if value in available_timezones():
        return value
    raise ValueError(f"{_shown(value)} is not a time zone{_nearest(value, sorted(available_timezones()))}")


def _known_quota(value: str) -> str:
    from limits import parse_many

    try:
        windows = parse_many(value)
    except ValueError:
        windows = []
    if not windows:
        raise ValueError(f"{_shown(value)} is not a quota such as 3/day")
    return value


def _filled(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not 1 <= len(values) <= MAX_TIERS:
        raise ValueError(f"the list has {len(values)} items")
    return values


ZoneName = Annotated[str, AfterValidator(_known_zone)]
MAX_TIERS = 32


class TierSettings(Table):
    """One class of callers; tiers stand in the order of their priority."""

    name: str = Field(min_length=1, max_length=100, description="the tier's name, such as free")
    floor: Number = Field(0.0, ge=0, le=1, description="the share of capacity that the tier keeps, from 0 to 1")
    quota: Annotated[str, AfterValidator(_known_quota)] | None = Field(
        None, description="what a tenant may start, such as 3/day"
    )
    tenant_day_min: Whole | None = Field(None, ge=0, description="the fewest images a day that a tenant gets")
    tenant_day_max: Whole | None = Field(None, ge=0, description="the most images a day that a tenant gets")
    deferrable: bool = Field(False, description="true where the tier's work may wait for a cleaner grid")
    defer_max_s: Number = Field(3600.0, ge=0, le=604_800, description="the longest wait in s, from 0 to 604800")


class TenantSettings(Table):
    """What is known of a tenant."""

    name: str = Field(min_length=1, max_length=256, description="the tenant's name")
    zone: ZoneName = Field("UTC", description="the time zone in which the tenant's day begins")
    tier: str | None = Field(None, description="the tenant's tier, where the caller does not say")


class ThrottleTable(Table):
    """How much may come next, for whom, and who counts it."""

    actuators: Annotated[tuple[Literal["rate", "power_cap"], ...], AfterValidator(_filled)] = Field(
        ("rate", "power_cap"), description='["rate", "power_cap"], or ["rate"] where nobody sets caps'
    )
    tiers: Annotated[tuple[TierSettings, ...], AfterValidator(_filled)] = Field(
        tuple(TierSettings(name=tier.name, floor=tier.floor) for tier in DEFAULT_TIERS),
        description=f"1 to {MAX_TIERS} tiers in the order of their priority",
    )
    margin_c: Number = Field(2.0, ge=0, le=30, description="kelvins kept under the operating limit, from 0 to 30")
    rate_margin_c: Number = Field(3.0, ge=0, le=30, description="kelvins more where no cap may be set, from 0 to 30")
    host_power_limit_w: Number | None = Field(None, gt=0, description="the power in W that all devices may draw")
    quota_storage: str = Field(
        "memory",
        pattern=r"^(memory|rediss?://\S+)$",
        description="memory, or redis://HOST:PORT/DB for all hosts",
    )
    zone: ZoneName = Field("UTC", description="the time zone in which a day of quota or budget begins")
    tenants: tuple[TenantSettings, ...] = Field((), description="tenants with a zone or tier of their own")
    deny_status: Literal[403, 429, 503] = Field(429, description="403, 429 or 503: how authz says no")
    budget_kwh: Number | None = Field(None, gt=0, description="the energy in kWh for each budget period")
    budget_co2e_kg: Number | None = Field(None, gt=0, description="the CO2e in kg for each budget period")
    budget_period: Literal["hour", "day", "month"] = Field("day", description="hour, day or month")
    decisions_mb: Whole = Field(256, ge=1, le=1_000_000, description="the disk in MB that decisions may take, from 1")
    control_token: SecretStr | None = Field(None, description="the token that a reporter of queues must show")

    @model_validator(mode="after")
    def _consistent(self) -> ThrottleTable:
        names = [tier.name for tier in self.tiers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tier {_shown(name)} is named twice")
        if sum(tier.floor for tier in self.tiers) > 1:
            raise ValueError("the tiers' floors together are more than 1")
        return self

    def pure(self) -> ThrottleSettings:
        """What the recommender takes."""
        return ThrottleSettings(
            tiers=tuple(Tier(**tier.model_dump()) for tier in self.tiers),
            actuators=tuple(self.actuators),
            margin_c=self.margin_c,
            rate_margin_c=self.rate_margin_c,
            host_power_limit_w=self.host_power_limit_w,
        )


class Settings(BaseSettings):
    """Everything that can be set, frozen. ``load_settings`` builds it; built directly it reads no file or variable."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    state_dir: FullPath = Field(description="a folder for the ledger that the daemon may write to")
    source: str = Field("auto", description="auto, nvml, rapl, model, twin or replay:FILE")
    http: HttpSettings = HttpSettings()
    socket: SocketSettings
    metering: MeteringSettings = MeteringSettings()
    twin: TwinSettings = TwinSettings()
    site: SiteSettings = SiteSettings()
    grid: GridSettings = GridSettings()
    throttle: ThrottleTable = ThrottleTable()

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        if value in SOURCES or (value.startswith(REPLAY) and len(value) > len(REPLAY)):
            return value
        raise ValueError(f"{_shown(value)} is not a source{_nearest(value, [*SOURCES, REPLAY])}")

    @property
    def replay_file(self) -> Path | None:
        """The file of ``source = "replay:FILE"``, else ``None``."""
        return Path(self.source.removeprefix(REPLAY)).expanduser() if self.source.startswith(REPLAY) else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller gives: the environment is a parameter of ``load_settings``, not a hidden input."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and a line for a person about each variable that looks like ours and is not."""

    settings: Settings
    warnings: tuple[str, ...] = ()


def load_settings(
    config_file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from a TOML file, the environment and flags; warnings are logged.

    ``overrides`` maps keys such as ``"http.port"`` to what the flag gave; ``None`` is a flag that was not given.
    ``environ`` is the process's own where it is ``None``. Raises ``ConfigFault`` with every fault found.
    """
    loaded = load(config_file, overrides, environ)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    return loaded.settings


def load(
    config_file: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded:
    """As ``load_settings``, with the warnings returned instead of logged."""
    environ = os.environ if environ is None else environ
    flags = {tuple(key.split(".")): value for key, value in (overrides or {}).items() if value is not None}
    variables, warnings = _variables(environ)
    text, faults = _read(config_file) if config_file else ("", [])
    table, toml_faults = _parse(text, config_file)
    faults += toml_faults

    origins: dict[KeyPath, str] = {path: f"{config_file}:{line}" for path, line in _key_lines(text).items()}
    origins |= {path: f"environment {name}" for path, name in variables.items()}
    origins |= {path: f"option --{path[-1].replace('_', '-')}" for path in flags}

    values = table
    for layer in (_environment_layer(environ, variables), _nested(flags)):
        values = _merged(values, layer)
    _place_files(values, environ)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        faults += _fault_lines(error, origins, config_file)
    if faults:
        raise ConfigFault(*faults)
    return Loaded(settings, tuple(warnings))


def _place_files(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Fill in the state folder and the socket: systemd's, root's, or the person's own (XDG)."""
    as_service = os.geteuid() == 0 and "state_dir" not in values
    # systemd gives several folders separated by colons where the unit names several; the first is the unit's own.
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or ("/run/joulegate" if as_service else "")
    if "state_dir" not in values:
        values["state_dir"] = state or ("/var/lib/joulegate" if as_service else str(_personal_state(environ)))
    socket = values.setdefault("socket", {})
    state_dir = values["state_dir"]
    if isinstance(socket, dict) and isinstance(state_dir, str | Path):
        socket.setdefault("path", str(Path(runtime or state_dir) / SOCKET_NAME))


def _personal_state(environ: Mapping[str, str]) -> Path:
    xdg = environ.get("XDG_STATE_HOME")
    return Path(xdg) / "joulegate" if xdg else user_state_path("joulegate", appauthor=False)


def _read(config_file: Path) -> tuple[str, list[str]]:
    try:
        return config_file.read_bytes().decode("utf-8"), []
    except UnicodeDecodeError as error:
        return "", [f"{config_file}: byte {error.start + 1} is not UTF-8 text, save the file as UTF-8"]
    except OSError as error:
        reason = error.strerror or str(error)
        return "", [f"{config_file}: cannot be read ({reason}), give --config a readable TOML file"]


def _parse(text: str, config_file: Path | None) -> tuple[dict[str, Any], list[str]]:
    try:
        return tomllib.loads(text), []
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        where = f"{config_file}:{place[1]}" if place else f"{config_file}"
        what = str(error)[: place.start()] if place else str(error)
        return {}, [f"{where}: not TOML: {what[:1].lower()}{what[1:]}, mend that line"]


_HEADER = re.compile(r"^\s*\[{1,2}(?P<key>[^\[\]]+)\]")
_ASSIGNMENT = re.compile(r"""^\s*(?P<key>[A-Za-z0-9_."'\s-]+?)\s*=""")


def _key_lines(text: str) -> dict[KeyPath, int]:
    """Line of each key's first mention: ``tomllib`` does not tell, and a wrong guess here costs only a hint."""
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header, assignment = _HEADER.match(line), _ASSIGNMENT.match(line)
        if header:
            table = _toml_key(header["key"])
            lines.setdefault(table, number)
        elif assignment:
            lines.setdefault((*table, *_toml_key(assignment["key"])), number)
    return lines


def _toml_key(key: str) -> KeyPath:
    try:
        found = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    path: list[str] = []
    node: Any = found
    while isinstance(node, dict):
        name, node = next(iter(node.items()))
        path.append(name)
    return tuple(path)


def known_keys() -> dict[str, KeyPath]:
    """Every settable key: ``{"http.port": ("http", "port"), ...}``."""
    return {".".join(path): path for path, _ in _leaves(Settings)}


def _leaves(model: type[BaseModel], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, (*above, name))
        else:
            yield (*above, name), field


def _variable(path: KeyPath) -> str:
    return ENV_PREFIX + "__".join(path).upper()


def _variables(environ: Mapping[str, str]) -> tuple[dict[KeyPath, str], list[str]]:
    """Variables that set a key, and a warning for each that only looks as if it did."""
    names = {_variable(path): path for path, _ in _leaves(Settings)}
    found: dict[KeyPath, str] = {}
    warnings = []
    for name, value in environ.items():
        path = names.get(name.upper())
        if not name.upper().startswith(ENV_PREFIX) or not value or name == DEBUG_VARIABLE:
            continue
        if path:
            found[path] = name
        elif name != SOCKET_VARIABLE:
            known = [*names, SOCKET_VARIABLE, DEBUG_VARIABLE]
            warnings.append(f"environment {name}: not a setting, ignored{_nearest(name.upper(), known)}")
    if environ.get(SOCKET_VARIABLE):
        found.setdefault(("socket", "path"), SOCKET_VARIABLE)
    return found, warnings


def _environment_layer(environ: Mapping[str, str], variables: Mapping[KeyPath, str]) -> dict[str, Any]:
    source = EnvSettingsSource(Settings)
    source.env_vars = {_variable(path).lower(): environ[name] for path, name in variables.items()}
    return source()


def _nested(flat: Mapping[KeyPath, object]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for path, value in flat.items():
        node = result
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return result


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _shown(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=NEAR)
    return f"; did you mean {close[0]}?" if close else ""


def _fault_lines(error: ValidationError, origins: Mapping[KeyPath, str], config_file: Path | None) -> list[str]:
    details = error.errors()
    # A default is at fault only for what it was derived from; that has its own line, unless it is fit by itself.
    details = [detail for detail in details if _origin(detail, origins)] or details
    # Origins are in the order of the file's lines, which is the order in which a reader mends them.
    place = {path: number for number, path in enumerate(origins)}
    details.sort(key=lambda detail: place.get(_origin(detail, origins), -1))
    return list(dict.fromkeys(_fault_line(detail, origins, config_file) for detail in details))


def _named(detail: ErrorDetails) -> KeyPath:
    return tuple(part for part in detail["loc"] if isinstance(part, str))


def _origin(detail: ErrorDetails, origins: Mapping[KeyPath, str]) -> KeyPath:
    """The longest part of the fault's key that something set; empty when only a default is at fault."""
    named = _named(detail)
    return next((named[:depth] for depth in range(len(named), 0, -1) if named[:depth] in origins), ())


def _fault_line(detail: ErrorDetails, origins: Mapping[KeyPath, str], config_file: Path | None) -> str:
    named = _named(detail)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).removeprefix(".")
    where = origins.get(_origin(detail, origins)) or f"{config_file or 'default'}"
    where += ": " if where.startswith(("environment", "option")) else f" {key}: "
    if detail["type"] == "extra_forbidden":
        return where + _unknown_key(named, detail["input"])
    field = _field(named)
    advice = f"give {field.description}" if field else f"write a table [{key}] with its keys below it"
    return where + f"{_what(detail)}; {advice}"


def _field(named: KeyPath) -> Any:
    """The setting of that name, also inside the tables of a list; ``None`` where there is none."""
    model: type[BaseModel] = Settings
    field = None
    for name in named:
        field = model.model_fields.get(name)
        if field is None:
            return None
        model = _table_of(field.annotation) or BaseModel
    return None if field is not None and model is field.annotation else field


def _table_of(kind: Any) -> type[BaseModel] | None:
    """The table that a setting holds, or a list of which it holds."""
    kinds = [kind, *(part for part in getattr(kind, "__args__", ()))]
    return next((part for part in kinds if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _unknown_key(named: KeyPath, value: object) -> str:
    known = list(known_keys())
    tables = sorted({path[0] for path in known_keys().values() if len(path) > 1})
    if isinstance(value, dict):
        hint = _nearest(named[-1], tables)
        return f"unknown table{hint or '; known are ' + ', '.join(tables)}"
    listed = _table_of(_field(named[:-1]).annotation) if _field(named[:-1]) else None
    if listed is not None:
        known = [".".join((*named[:-1], name)) for name in listed.model_fields]
    siblings = [name for name in known if name.startswith(".".join(named[:-1]) + ".")]
    last = {name.rsplit(".", 1)[-1]: name for name in [*known, *siblings]}
    close = difflib.get_close_matches(named[-1], [*last], n=1, cutoff=NEAR)
    return f"unknown key; did you mean {last[close[0]]}?" if close else f"unknown key; known are {', '.join(known)}"


_WORDS = {
    "greater_than_equal": "{shown} is below {ge:g}",
    "less_than_equal": "{shown} is above {le:g}",
    "int_parsing": "{shown} is not a whole number",
    "int_type": "{shown} is not a whole number",
    "int_from_float": "{shown} is not a whole number",
    "float_parsing": "{shown} is not a number",
    "float_type": "{shown} is not a number",
    "string_type": "{shown} is not text in quotes",
    "path_type": "{shown} is not text in quotes",
    "tuple_type": "{shown} is not a list",
    "model_type": "{shown} is not a table",
    "model_attributes_type": "{shown} is not a table",
    "string_too_short": "the text is empty",
    "string_pattern_mismatch": "{shown} is not such a name",
    "literal_error": "{shown} is not a known value",
    "value_error": "{error}",
}
"""What pydantic's error types say in our words; a type that is not here keeps pydantic's."""


def _what(detail: ErrorDetails) -> str:
    words = _WORDS.get(detail["type"], "{shown}: {message}")
    return words.format(shown=_shown(detail["input"]), message=detail["msg"], **detail.get("ctx", {}))


def render(settings: Settings) -> str:
    """``settings`` as TOML that ``load_settings`` reads back to equal settings; what is not set is a comment."""
    lines = _rendered(settings)
    for name, value in settings:
        if isinstance(value, BaseModel):
            lines += ["", f"[{name}]", *_rendered(value)]
    return "\n".join(lines) + "\n"


def _rendered(model: BaseModel) -> list[str]:
    lines = []
    for name, value in model:
        if isinstance(value, BaseModel):
            continue
        lines.append(f"# {type(model).model_fields[name].description}")
        if isinstance(value, SecretStr):
            lines.append(f"# {name} is set and not shown")
            continue
        lines.append(f"# {name} is not set" if value is None else f"{name} = {_toml_value(value)}")
    return lines


def _toml_value(value: object) -> str:
    if isinstance(value, BaseModel):
        return f"{{{', '.join(f'{name} = {_toml_value(item)}' for name, item in value if item is not None)}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # JSON strings are TOML strings but for DEL, which TOML wants escaped and JSON leaves alone.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
