"""``joulegate advise``: the recommender in virtual time, from lines to lines, and its log recomputed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from joulegate.cli.faults import EXIT_CHECKED_BAD, UserFault

if TYPE_CHECKING:
    from io import BufferedReader

    from joulegate.stores.trail_verify import Outcome
    from joulegate.throttle.recommendation import Recommendation
    from joulegate.throttle.settings import ThrottleSettings

LINE_BYTES = 8 * 1024 * 1024
"""An observation of a thousand devices has a twentieth of it."""

_PIECE_BYTES = 1 << 16
_HEADINGS = f"{'t':>12} {'state':<11} {'binding':<9} {'a minute':>9} {'admit':>6} {'cap W':>7}  why"


def command(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file with a table [throttle].")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="A line of columns for a person instead of JSON.")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Also write a log that --verify can recompute.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --record replace a file.")] = False,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="FILE", help="Recompute a log, folder of segments or download; - is stdin."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for --verify too.")] = False,
) -> int:
    """Read observations as JSON Lines from stdin, and write one recommendation for each.

    Time is that of the observations: nothing here looks at a clock. A line that cannot be used gets the last limits
    with reason BAD_INPUT. With --verify, exit 1 says that something differs.
    """
    from joulegate.config import load

    _check(verify, record, force=force, table=table, as_json=as_json)
    loaded = load(config)
    for warning in loaded.warnings:
        typer.echo(f"joulegate: {warning}", err=True)
    settings = loaded.settings.throttle.pure()
    if verify is not None:
        return _verify(verify, settings if config is not None else None, as_json=as_json)
    from joulegate.throttle.adviser import Adviser
    from joulegate.throttle.wire import encode

    with _recorder(record, settings, force=force) as keep:
        if sys.stdin.isatty():
            typer.echo("joulegate: reading observations from the terminal; end with Ctrl-D", err=True)
        if table:
            print(_HEADINGS, flush=True)
        adviser = Adviser(settings)
        for line in lines_of(sys.stdin.buffer):
            made = adviser.advise_line(line)
            text = encode(made)
            keep(line, text)
            sys.stdout.write((_row(made) if table else text) + "\n")
            sys.stdout.flush()
    return 0


def _check(verify: Path | None, record: Path | None, *, force: bool, table: bool, as_json: bool) -> None:
    if verify is not None and (record is not None or table):
        raise UserFault("--verify: it reads a log and writes none; leave --record and --table out")
    if force and record is None:
        raise UserFault("--force: it is for --record FILE, which is not given")
    if table and as_json:
        raise UserFault("--table and --json: choose one")


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """Lines of ``stream`` as text without their newline; what is too long or not UTF-8 becomes text that is no JSON."""
    while line := stream.readline(LINE_BYTES + 1):
        if line.endswith(b"\n"):
            line = line[:-1]
        elif len(line) > LINE_BYTES:
            yield _too_long(line, stream)
            continue
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            shown = line.decode("utf-8", "backslashreplace")
            yield f"not UTF-8 at byte {error.start + 1}: {shown}"


def _too_long(begin: bytes, stream: BinaryIO) -> str:
    """Pass over the rest of a line, and say what it was: its text never lies in memory."""
    digest, length_bytes, piece = hashlib.sha256(begin), len(begin), begin
    while piece and not piece.endswith(b"\n"):
        piece = stream.readline(_PIECE_BYTES)
        digest.update(piece.removesuffix(b"\n"))
        length_bytes += len(piece.removesuffix(b"\n"))
    return f"a line of {length_bytes} bytes (sha256 {digest.hexdigest()}), more than {LINE_BYTES}"


@contextlib.contextmanager
def _recorder(file: Path | None, settings: ThrottleSettings, *, force: bool) -> Iterator[Callable[[str, str], None]]:
    """Keeps each line and its answer in ``file``; keeps nothing without one."""
    if file is None:
        yield lambda *_: None
        return
    from joulegate.cli.version import own_version
    from joulegate.stores.trail_code import code_here
    from joulegate.stores.trail_records import Base, Chain, Why, decided_of
    from joulegate.throttle.adviser import settings_hash

    try:
        log = file.open("w" if force else "x", encoding="ascii", newline="")
    except FileExistsError:
        raise UserFault(f"--record: {file} exists; give another name, or --force to replace it") from None
    with log:
        chain, count = Chain(), 0
        code = code_here(own_version())
        log.write(chain.line(Base(1, Why.START, code, settings, settings_hash(settings), None)))

        def keep(line: str, text: str) -> None:
            nonlocal count
            count += 1
            log.write(chain.line(decided_of(count, line, text)))
            log.flush()

        log.flush()
        yield keep


def _row(made: Recommendation) -> str:
    t = "" if made.t is None else f"{made.t:.1f}"
    rate = "no limit" if made.max_images_per_minute is None else f"{made.max_images_per_minute:.1f}"
    cap_w = f"{min(made.power_cap_w.values()):.0f}" if made.power_cap_w else "-"
    binding = "-" if made.binding is None else made.binding.value
    why = made.reasons[0].note or "the line cannot be used" if _is_bad(made) else made.explain
    columns = f"{t:>12} {made.state.value:<11} {binding:<9} {rate:>9} {made.admit_fraction:>6.2f} {cap_w:>7}"
    return f"{columns}  {printable(why)}"


def printable(text: str) -> str:
    """``text`` in one line without what would steer a terminal: names in it come from outside."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _is_bad(made: Recommendation) -> bool:
    from joulegate.throttle.recommendation import Code

    return bool(made.reasons) and made.reasons[0].code is Code.BAD_INPUT


def _verify(log: Path, settings: ThrottleSettings | None, *, as_json: bool) -> int:
    from joulegate.cli.version import own_version
    from joulegate.stores.trail_code import code_here
    from joulegate.stores.trail_input import given_in, given_on
    from joulegate.stores.trail_verify import Verifier
    from joulegate.throttle.adviser import settings_hash

    wanted = None if settings is None else settings_hash(settings)
    verifier = Verifier(code_here(own_version()), configuration_hash=wanted)
    for given in given_on(cast("BufferedReader", sys.stdin.buffer)) if str(log) == "-" else given_in(log):
        if given.why is None:
            verifier.take(given.record, given.where)
        elif given.torn:
            verifier.outcome.notes.append(f"{given.where}: half a line, as a kill or a writer at work leaves it")
        else:
            verifier.unreadable(given.where, given.why)
    outcome = verifier.outcome
    if as_json:
        typer.echo(json.dumps(_summary(outcome)))
    elif outcome.ok:
        typer.echo("\n".join([_total(log, outcome), *_remarks(outcome)]))
    else:
        raise UserFault(*_faults(log, outcome), exit_code=EXIT_CHECKED_BAD)
    return 0 if outcome.ok else EXIT_CHECKED_BAD


def _total(log: Path, outcome: Outcome) -> str:
    return f"{log}: {outcome.recomputed} of {outcome.decisions} decisions are the same bit for bit, and the chain holds"


def _remarks(outcome: Outcome) -> list[str]:
    return [printable(f"gap {gap}") for gap in outcome.gaps] + [printable(f"note: {note}") for note in outcome.notes]


def _faults(log: Path, outcome: Outcome) -> list[str]:
    """One line for each kind of difference, and one for decisions that nothing could be said of."""
    lines = []
    for first in outcome.differences.values():
        place = f"{first.where}: " + ("" if first.sequence is None else f"sequence {first.sequence}: ")
        more = f" (and {first.count - 1} more of this kind)" if first.count > 1 else ""
        lines.append(printable(f"{place}{first.kind}: {first.what}{more}"))
    missed = outcome.decisions - outcome.recomputed
    if outcome.decisions == 0 and not lines:
        lines.append(
            f"{log}: it holds no decision; give a log of --record, a folder of decisions, or a download of them"
        )
    elif missed:
        lines.append(
            f"{log}: {missed} of {outcome.decisions} decisions have no usable base before them and were not recomputed;"
            " give the records before them too"
        )
    return lines + _remarks(outcome)


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {
        "ok": outcome.ok,
        "decisions": outcome.decisions,
        "recomputed": outcome.recomputed,
        "bases": outcome.bases,
        "gaps": outcome.gaps,
        "notes": outcome.notes,
        "differences": [
            {
                "kind": first.kind,
                "sequence": first.sequence,
                "where": first.where,
                "what": first.what,
                "count": first.count,
            }
            for first in outcome.differences.values()
        ],
    }
