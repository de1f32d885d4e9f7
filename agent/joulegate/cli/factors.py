"""``joulegate factors``: the emission factors in use, where they come from, and what a new set would move."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from joulegate.cli.examples import example
from joulegate.cli.faults import EXIT_CHECKED_BAD, UserFault
from joulegate.cli.version import own_version

if TYPE_CHECKING:
    from joulegate.carbon.difference import Move
    from joulegate.carbon.factors import Factor, FactorSet
    from joulegate.stores.factor_sets import FactorSets, KnownSet

command = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=False)

ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file with settings.")]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", metavar="DIR", help="The state folder, which keeps sets in factors/.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SET = "shipped, an id, the beginning of a hash, or a file"
_SHOWN = 20
"""So many lines are printed of a list that only explains; all of them with --json."""


@command.command(
    epilog=example("joulegate factors build", "joulegate factors build --operator own.toml --output factors.json")
)
def build(
    operator: Annotated[
        Path | None, typer.Option("--operator", metavar="FILE", help="TOML with [[factors]] tables of your own.")
    ] = None,
    without_codecarbon: Annotated[
        bool, typer.Option("--without-codecarbon", help="Take the operator's factors alone.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write here instead of into the state folder.")
    ] = None,
    built_at: Annotated[
        str | None, typer.Option("--built-at", metavar="DATE", help="The date to write (today), for a rebuild.")
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Build a factor set from the installed codecarbon and your own TOML; nothing is downloaded.

    The set is written whole or not at all, and is used only once it is pinned. Rows that fail a check are left out and
    named; a fault in your own file stops the build.
    """
    from joulegate.carbon.checks import set_jumps, year_jumps
    from joulegate.stores.factor_sets import write_set

    sets = _sets(config, state_dir)
    made, replaced = _made(operator, without_codecarbon=without_codecarbon, built_at=_date(built_at))
    warnings = (*replaced, *year_jumps(made.factors), *set_jumps(sets.in_use(), made))
    if output is None:
        path = sets.save(made)
    else:
        path = output
        write_set(made, path)
    if as_json:
        facts = {**_header(made), "path": str(path), "left_out": list(made.left_out), "warnings": list(warnings)}
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    typer.echo(f"{made.id}\nhash {made.hash}\n{len(made.factors)} factors in {path}")
    _warn("left out", made.left_out)
    _warn("note", warnings)


@command.command("list", epilog=example("joulegate factors list", "joulegate factors list --place DEU --json"))
def list_sets(
    place: Annotated[
        str | None, typer.Option("--place", metavar="PLACE", help="Show what each set says of one place.")
    ] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """List the factor sets that are known here: the shipped one and those of the state folder."""
    known = _sets(config, state_dir).known()
    if place is not None:
        _require_place(place, [one.factors for one in known])
    if as_json:
        typer.echo(json.dumps([_listed(one, place) for one in known], ensure_ascii=False, indent=2))
        return
    for one in known:
        mark = "*" if one.pinned else " "
        where = "shipped" if one.path is None else str(one.path)
        built = one.factors.built_at
        typer.echo(f"{mark} {one.factors.id}  {len(one.factors.factors)} factors, built {built}, {where}")
        for factor in _of_place(one.factors, place) if place else ():
            typer.echo(f"    {_figure(factor)}")


@command.command(epilog=example("joulegate factors show DEU", "joulegate factors show gcp/us-central1 --json"))
def show(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="A country, region, zone or cloud region.")],
    reference: Annotated[str | None, typer.Option("--set", metavar="SET", help=f"The set: {_SET}.")] = None,
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show every factor of one place with its year, convention, source, licence and how to cite it."""
    sets = _sets(config, state_dir)
    factors = sets.in_use() if reference is None else sets.find(reference)
    _require_place(place, [factors])
    found = _of_place(factors, place)
    if as_json:
        rows = [factor.to_wire() for factor in found]
        typer.echo(json.dumps({**_header(factors), "factors": rows}, ensure_ascii=False, indent=2))
        return
    typer.echo(f"set {factors.id}")
    for factor in found:
        typer.echo("\n".join(_described(factor)))


@command.command(epilog=example("joulegate factors diff shipped own.json"))
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help=f"{_SET[0].upper()}{_SET[1:]}.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The set that would take its place.")],
    config: ConfigFile = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> int:
    """Say which factors move from one set to the other and by how much; exit 1 when any does.

    The largest relative change comes first, then what one set has and the other has not.
    """
    from joulegate.carbon.difference import moves

    sets = _sets(config, state_dir)
    before, after = sets.find(old), sets.find(new)
    found = moves(before, after)
    if as_json:
        facts = {"old": _header(before), "new": _header(after), "moves": [move.to_wire() for move in found]}
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
    elif not found:
        typer.echo(f"{before.id} and {after.id} give the same factor for every place")
    else:
        for move in found:
            typer.echo(_moved(move))
    return EXIT_CHECKED_BAD if found else 0


@command.command(epilog=example("joulegate factors pin codecarbon-3.3.2-0123456789ab", "joulegate factors pin --clear"))
def pin(
    reference: Annotated[str | None, typer.Argument(metavar="SET", help=f"{_SET[0].upper()}{_SET[1:]}.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Go back to the shipped set.")] = False,
    config: ConfigFile = None,
    state_dir: StateDir = None,
) -> None:
    """Use one factor set from now on, until another is pinned; what was reported keeps the set it was made with."""
    if (reference is None) != clear:
        raise UserFault("give either a SET or --clear; see 'joulegate factors pin --help'")
    sets = _sets(config, state_dir)
    if reference is None:
        was = sets.clear_pin()
        typer.echo(f"{'now' if was else 'still'} using the shipped set {sets.in_use().id}")
        return
    factors = sets.find(reference)
    sets.pin(factors)
    typer.echo(f"now using {factors.id}")


def _sets(config: Path | None, state_dir: Path | None) -> FactorSets:
    from joulegate.config import load
    from joulegate.stores.factor_sets import FactorSets

    loaded = load(config, {"state_dir": None if state_dir is None else str(state_dir)})
    return FactorSets(loaded.settings.state_dir)


def _made(operator: Path | None, *, without_codecarbon: bool, built_at: str) -> tuple[FactorSet, tuple[str, ...]]:
    from joulegate.carbon.entered import with_entered
    from joulegate.carbon.factors import FactorSet

    if without_codecarbon and operator is None:
        raise UserFault("nothing to build from: give --operator FILE, or leave --without-codecarbon out")
    entered = () if operator is None else _entered(operator)
    base: tuple[Factor, ...] = ()
    left_out: tuple[str, ...] = ()
    names = []
    if not without_codecarbon:
        base, left_out, version = _codecarbon()
        names.append(f"codecarbon-{version}")
    if entered:
        names.append("operator")
    factors, replaced = with_entered(base, entered)
    generator = f"joulegate {own_version()}"
    return (
        FactorSet.of("+".join(names), factors, built_at=built_at, generator=generator, left_out=left_out),
        replaced,
    )


def _codecarbon() -> tuple[tuple[Factor, ...], tuple[str, ...], str]:
    from joulegate.carbon.codecarbon import FILES, LICENCES, UnusableData, import_codecarbon
    from joulegate.stores.codecarbon_files import read_codecarbon

    found = read_codecarbon(FILES)
    if found.licence not in LICENCES:
        raise UserFault(
            f"codecarbon {found.version} is under {found.licence!r}, this joulegate knows it under {LICENCES[0]}; "
            "nothing was built"
        )
    try:
        imported = import_codecarbon(found.files, found.version)
    except UnusableData as error:
        raise UserFault(str(error)) from error
    return tuple(imported.factors), tuple(imported.left_out), found.version


def _entered(path: Path) -> tuple[Factor, ...]:
    from joulegate.carbon.entered import EnteredFault, entered_factors

    try:
        return entered_factors(tomllib.loads(path.read_bytes().decode("utf-8")))
    except EnteredFault as error:
        raise UserFault(*(f"{path}: {line}" for line in error.lines)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserFault(f"{path}: not TOML: {' '.join(str(error).split())}; mend that line") from error


def _date(text: str | None) -> str:
    if text is None:
        return datetime.now(UTC).date().isoformat()
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).date().isoformat()
    except ValueError:
        raise UserFault(f"--built-at: {text!r} is not a date; give it as 2026-11-24") from None


def _of_place(factors: FactorSet, place: str) -> Sequence[Factor]:
    from joulegate.carbon.place import folded

    wanted = folded(place)
    return factors.named(place) or [one for one in factors.factors if folded(one.place.name) == wanted]


def _require_place(place: str, sets: Iterable[FactorSet]) -> None:
    from joulegate.carbon.place import PlaceKind, alpha3_by_alpha2, nearest

    names: dict[str, str] = {}
    for factors in sets:
        if _of_place(factors, place):
            return
        for kind in PlaceKind:
            names |= factors.places(kind)
    long = alpha3_by_alpha2().get(place.upper())
    hint = f"; did you mean {long} ({names[long]})?" if long in names else nearest(place, names)
    raise UserFault(f"{place}: no factor of such a place{hint or '; give a code such as DEU, USA/virginia or SE3'}")


def _header(factors: FactorSet) -> dict[str, Any]:
    return {
        "id": factors.id,
        "hash": factors.hash,
        "built_at": factors.built_at,
        "generator": factors.generator,
        "count": len(factors.factors),
    }


def _listed(one: KnownSet, place: str | None) -> Mapping[str, Any]:
    facts = {**_header(one.factors), "path": None if one.path is None else str(one.path), "in_use": one.pinned}
    if place is not None:
        facts["factors"] = [factor.to_wire() for factor in _of_place(one.factors, place)]
    return facts


def _figure(factor: Factor) -> str:
    return (
        f"{factor.place.code} {factor.period}: {factor.value:.4g} ({factor.low:.3g} to {factor.high:.3g}) "
        f"{factor.unit}; {factor.convention}"
    )


def _described(factor: Factor) -> Sequence[str]:
    source = factor.source
    lines = [
        "",
        f"{factor.place.name} ({factor.place.kind.replace('_', ' ')}, {factor.place.country})",
        f"  {_figure(factor)}",
        f"  source   {source.name}, {source.version}{' (entered by the operator)' if factor.entered else ''}",
        f"  licence  {source.licence}",
        f"  cite     {source.citation}",
        f"  url      {source.url or 'none'}",
    ]
    return [*lines, f"  note     {factor.note}"] if factor.note else lines


def _moved(move: Move) -> str:
    factor = move.factor
    if move.old is None or move.new is None:
        word = "only in the new set" if move.old is None else "only in the old set"
        return f"{factor.place.code}: {word}, {factor.value:.4g} {factor.unit} ({factor.period})"
    change = "" if move.relative is None else f" ({move.relative:+.1%})"
    rest = [name for name in move.changed if name not in {"value", "period"}]
    return (
        f"{factor.place.code}: {move.old.value:.4g} ({move.old.period}) -> {move.new.value:.4g} {factor.unit} "
        f"({move.new.period}){change}{', also ' + ', '.join(rest) if rest else ''}"
    )


def _warn(what: str, lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN]:
        typer.echo(f"joulegate: {what}: {line}", err=True)
    if len(lines) > _SHOWN:
        typer.echo(f"joulegate: {what}: {len(lines) - _SHOWN} more, see --json", err=True)
