"""What a run says of itself beside its results: errors in one line each."""

import logging
import os
import re
import traceback
import warnings

TRACEBACK = "AMCL_FAST_TRACEBACK"
"""Variable of the environment that, set to anything, has the traceback of what is told in one line printed as well."""


_FIRST = re.compile(r"Errors:\s+- (.*?)\n\s*(?:- Expected|Given value type:)", re.DOTALL)


def message(error: BaseException) -> str:
    """What an error says, in one line; of those of Python's own that say little without it, with their kind."""
    # jsonargparse wraps what a constructor says into a list of every type it has tried.
    met = [error]  # whose causes may be a ring
    while (wrapped := "Given value type:" in str(error)) and (cause := error.__cause__) and cause not in met:
        error = cause
        met.append(error)
    said = str(error)
    if wrapped and (inner := _FIRST.search(said)):  # it has put its list into the very error
        said = inner[1]
    said = " ".join(said.split())
    if lacking := re.search(r"class_path '([\w.]+)':? ?Requirement '(([\w-]+)[^']*)' not met", said):
        return f"{lacking[1]} needs {lacking[2]}: pip install {lacking[3]}"
    return f"{type(error).__name__}: {said}" if isinstance(error, TypeError | ArithmeticError) else said


def show_traceback(error: BaseException) -> None:
    """Print where an error comes from, if the environment asks for it, before it is told in one line."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)


def quieten() -> None:
    """Leave the screen to the run: no announcements of Lightning's, none of deprecations inside it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # the last step is logged
    warnings.filterwarnings("ignore", message=r".*callbacks: \['Timer'\]")  # of a max_time that a resume takes away
