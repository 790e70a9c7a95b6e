"""Paths as a user gives them, and as a run keeps them: it may be resumed and evaluated from anywhere."""

import os
import re
from pathlib import Path

from .data.shards.patterns import is_there
from .data.sources.named import NAMES

_VARIABLE = re.compile(r"\$(?:([^\W\d]\w*)|\{([^\W\d]\w*)\})", re.ASCII)


def expanded(path: str) -> str:
    """The path with its leading ~ or ~user as the folder that it stands for; ./~ is a folder of that name.

    $NAME and ${NAME} are variables of the environment, which a shell leaves in quotes and in files of settings; what
    is there under the name as it is written stays.

    Raises:
        ValueError: there is no such user or variable, or the path is empty, as that of a variable of the shell that is
            not set.
    """
    if "$" in path and not os.path.lexists(path):
        lacking = [name for match in _VARIABLE.finditer(path) if (name := match[1] or match[2]) not in os.environ]
        if lacking:
            raise ValueError(f"{path} names a variable of the environment that is not set: {lacking[0]}")
        path = _VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], path)
    if not path:
        raise ValueError("a path must not be empty, got ''")
    if path.startswith("~"):
        found = os.path.expanduser(path)
        if found == path:
            raise ValueError(
                f"{path} names the home of a user who is not known here; a folder of that name is ./{path}"
            )
        return found
    # pathlib drops the ./ that made the difference.
    return os.path.abspath(path) if os.path.normpath(path).startswith("~") else path


def absolute_data(root: str) -> str:
    """data.root or data.held_out as a run keeps it: a name as it is, a path absolute.

    Raises:
        ValueError: see `expanded`.
    """
    return root if root in NAMES else os.path.abspath(expanded(root))


def find_data(root: str, run_dir: Path) -> str:
    """data.root that a run has kept, absolute. One that is relative, as before runs kept them absolute, is looked for
    where the run may have been started from, and here.

    Raises:
        FileNotFoundError: a relative one is in none of these places.
        ValueError: it is in several, which may hold different data; or see `absolute_data`.
    """
    if root in NAMES or not root or os.path.isabs(root) or root.startswith("~"):
        return absolute_data(root)
    own = run_dir.absolute()
    places = list(dict.fromkeys([*own.parents[:2], Path.cwd()]))  # --run_dir run, and runs/run
    found: dict[str, str] = {}  # a link and what it leads to are one place
    for path in (os.path.abspath(place / root) for place in places):
        if is_there(path):
            found.setdefault(os.path.realpath(path), path)
    told = f"the data of {run_dir}, {root}, is a relative path, and is in"
    if not found:
        raise FileNotFoundError(f"{told} none of {', '.join(map(str, places))}: give --data")
    if len(found) > 1:
        raise ValueError(f"{told} more than one place: give one of {', '.join(found.values())} as --data")
    return next(iter(found.values()))
