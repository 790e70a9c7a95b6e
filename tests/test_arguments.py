"""amcl_fast.arguments: what a command does not take is told in one line; names have dashes or underscores."""

import argparse
import re

import pytest

from amcl_fast.argument_types import number, whole_number
from amcl_fast.arguments import parser
from amcl_fast.cli import main


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "amcl-fast: error: the following arguments are required: COMMAND"),
        ("evaluate", "amcl-fast evaluate: error: the following arguments are required: CKPT"),
        ("evaluate run --rates high", "amcl-fast evaluate: error: argument --rates: must be a finite number, got high"),
        ("evaluate run --bach_size 3", "amcl-fast evaluate: error: unrecognized arguments: --bach_size 3"),
        ("export run --hub", "amcl-fast export: error: argument --hub: expected one argument"),
    ],
)
def test_a_wrong_command_line_is_one_line(line, told, capsys):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    (said,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and said == f"{told}; {told.split(':')[0]} --help says what there is"


def test_every_name_has_dashes_as_well():
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        for option in command._option_string_actions:
            assert "_" not in option or option.replace("_", "-") in command._option_string_actions, (name, option)


def options(command):
    """Options of a command and of those below it, each with the words that lead to it."""
    for action in command._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from (([name, *words], option) for words, option in options(below))
        elif action.type is not None and action.option_strings:
            yield [], action


def test_numbers_are_finite_and_not_endless(capsys):
    """Of every command; a type of Python's own would take nan, and print 5,000 digits."""
    command = parser()
    numeric = [(words, option) for words, option in options(command) if option.type in (whole_number, number)]
    assert not [option for _, option in options(command) if option.type in (int, float)] and len(numeric) > 30
    for words, option in numeric:
        for text in ("nan", "inf", "1e400", "1" + 400 * "0", "1" + 5000 * "0"):
            with pytest.raises(SystemExit):
                command.parse_args([*words, f"{option.option_strings[0]}={text}"])
            (said,) = capsys.readouterr().err.splitlines()
            assert re.search(f"{option.option_strings[0]}.*: must be a (whole|finite) number, got ", said)
            assert len(said) < 250
