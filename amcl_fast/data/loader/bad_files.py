"""What is told of a file that turns out to be bad during a run."""

import logging
from collections.abc import Callable

from amcl_fast.data.locations import shown

log = logging.getLogger(__name__)

BadFileHandler = Callable[[str, str], None]

# Bad files beyond these are listed without a warning of their own: a folder may have gone as a whole.
_TOLD = 100
# What a loader of this process has said need not be said by the next one.
_told: set[tuple[str, str]] = set()


def tell(location: str, reason: str, number: int, handler: BadFileHandler | None) -> None:
    """Warn of a bad file, the `number`th of its loader, and hand it on."""
    if (location, reason) not in _told:
        _told.add((location, reason))
        if number <= _TOLD:
            log.warning("%s: %s", shown(location), reason)
        elif number == _TOLD + 1:
            log.warning("more than %d files turned out to be bad: the others are only listed", _TOLD)
    if handler is not None:
        handler(location, reason)
