"""Every command explains itself with an example."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from joulegate.cli.app import COMMANDS, load_command, main


def spellings() -> list[tuple[str, ...]]:
    """Every command and, of those that are groups, every command below."""
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command: Any = load_command(name)
        found += [(name,), *((name, below) for below in getattr(command, "commands", {}))]
    return found


@pytest.mark.parametrize("words", spellings(), ids=" ".join)
def test_help_shows_an_example(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    """--help exits 0, says what the command does and shows a command line that begins with its own name."""
    assert main([*words, "--help"]) == 0
    out, err = capsys.readouterr()
    assert not err
    usage, about, *_ = out.split("\n\n")
    assert usage.startswith(f"Usage: joulegate {' '.join(words)} ")
    assert len(about.split()) >= 3
    example = out.split("Example:\n", 1)[1].strip().splitlines()
    assert any(line.strip().startswith(f"joulegate {' '.join(words)}") for line in example)


def test_examples_are_known_command_lines():
    """Each example of the table begins with a command that exists, and its options are the command's own."""
    for name, listed in COMMANDS.items():
        program, *words = listed.example.split()
        assert (program, words[0]) == ("joulegate", name)
        command: Any = load_command(name)
        while words and hasattr(command, "commands"):
            command = command.commands.get(words[1], command)
            words = words[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= options


def test_group_and_function_are_both_commands():
    """The table takes plain functions and typer groups."""
    assert isinstance(load_command("version"), typer.core.TyperCommand)
    assert isinstance(load_command("config"), typer.core.TyperGroup)
