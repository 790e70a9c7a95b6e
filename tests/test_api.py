"""What others rely on is what tests/api.txt says."""

from difflib import unified_diff

from tests.helpers.api import REWRITE, TABLE, lines


def test_public_names_signatures_paths_and_commands():
    change = [
        line
        for line in unified_diff(TABLE.read_text().splitlines(), lines(), n=0, lineterm="")
        if not line.startswith(("---", "+++", "@@"))
    ]
    advice = f"others rely on what has changed; where that is meant, run `{REWRITE}` and tell it in CHANGELOG.md"
    assert not change, "\n".join([advice, *change])
