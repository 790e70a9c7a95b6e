"""amcl_fast.arguments: what a command does not take is told in one line; names have dashes or underscores."""

import argparse

import pytest

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
