"""What a data set leaves out, told in a line however much it is."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

LOOSE = "it lies beside the folders of the classes, so it has no label"
NO_LABEL = "it is to be measured on, but has no label"
"""Why an image is not measured on."""
NO_IMAGES = "it holds no image file"
"""How the reason begins of a folder that is no class."""
SECOND = "its sample has an image already"
"""How the reason begins of a further image of a sample in a tar."""
FOLDER_UNREADABLE = "the folder cannot be read"
TOO_LARGE = "too large"
"""How the reason begins of an image that is left out for its size, or for how long it would take to be decoded."""
DURING = "found during the run: "
"""What stands before the reason of a file that was good when a run began."""
LINK = "a link"
SAME = "the same folder as"
"""How the reasons begin for which folders are not entered."""
_OTHER_CLASS = re.compile(r"its class (['\"])(.*)\1 is not one of the training classes", re.DOTALL)
_STRANGER = "its class is not one of the training classes"
_NAMED = 5
_LISTED = 100
_KIND = re.compile(rf"((?:{DURING})?[^:]*)", re.DOTALL)
_MORE = re.compile(r"([\d,]+) more: ")


def of_other_class(name: str) -> str:
    """Why a held-out image is left out whose class is not trained on."""
    return f"its class {name!r} is not one of the training classes"


def few(names: Iterable[str]) -> str:
    """The first names, and how many more."""
    names = list(names)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def summarise(skipped: Iterable[tuple[str, str]]) -> str:
    """How much is left out, and of what kind, "" for nothing.

    Args:
        skipped: (path, reason) of each file and folder.
    """
    kinds: Counter[str] = Counter()
    classes: dict[str, None] = {}
    for _, reason in skipped:
        if other := _OTHER_CLASS.fullmatch(reason):
            classes[other[2]] = None
            kinds["class"] += 1
        elif reason == LOOSE:
            kinds["loose"] += 1
        elif reason == NO_LABEL:
            kinds["unlabelled"] += 1
        elif reason.startswith(SECOND):
            kinds["second"] += 1
        elif reason.startswith(LINK):
            kinds["link"] += 1
        elif reason.removeprefix(DURING).startswith(TOO_LARGE):
            kinds["large"] += 1
        elif reason.startswith((FOLDER_UNREADABLE, SAME, NO_IMAGES)):
            kinds["folder"] += 1
        else:
            kinds["file"] += 1
    if not kinds:
        return ""
    strangers = f" of {_count(len(classes), 'class', 'classes')} that the training does not have ({few(classes)})"
    texts = {
        "file": ("unreadable file", "unreadable files", ""),
        "class": ("image", "images", strangers),
        "loose": ("image", "images", " beside the folders of the classes"),
        "unlabelled": ("held-out image", "held-out images", " without a label"),
        "second": ("image", "images", " of samples that have one already"),
        "link": ("link to a folder", "links to folders", ""),
        "folder": ("folder", "folders", ""),
        "large": ("image", "images", " larger than is accepted"),
    }
    parts = [_count(kinds[kind], one, many) + rest for kind, (one, many, rest) in texts.items() if kinds[kind]]
    return f"{kinds.total():,} left out ({', '.join(parts)})"


def not_entered(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """A line on links that were not followed, and one on folders that cannot be read."""
    links = [entry for entry in left_out if entry[1].startswith((LINK, SAME))]
    unreadable = [entry for entry in left_out if entry[1].startswith(FOLDER_UNREADABLE)]
    return [
        f"{len(found):,} {what}, the first: {found[0][0]}: {found[0][1]}"
        for found, what in ((links, "link(s) to folders not followed"), (unreadable, "folder(s) left out"))
        if found
    ]


def shorten(skipped: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The list without all but the first files of a folder that are left out for the same kind of reason.

    The others are an entry of their folder: how many more, and the reason, as far as they have it in common. Held-out
    images of all classes that are not trained on are of one kind, and of the folder that these have in common.

    Args:
        skipped: (path, reason) of each file and folder.
    """
    groups: dict[tuple[str, str], _Group] = {}
    short = []
    for path, reason in skipped:
        folder, kind = os.path.dirname(path), _kind(reason)
        group = groups.setdefault(("" if kind == _STRANGER else folder, kind), _Group(folder, reason))
        group.number += 1
        if group.number <= _LISTED:
            short.append((path, reason))
        if group.folder != folder:
            group.folder = os.path.commonpath([group.folder, folder])
        if group.reason != reason:
            group.reason = kind
    long = [group for group in groups.values() if group.number > _LISTED]
    return short + [(f"{group.folder}/", f"{group.number - _LISTED:,} more: {group.reason}") for group in long]


def listed(skipped: Iterable[tuple[str, str]]) -> str:
    """The text of a list of what is left out, shortened, a line each."""
    # A name may hold anything but "/": a line break would end the entry.
    return "".join(f"{path}\t{reason}".replace("\n", "\\n") + "\n" for path, reason in shorten(skipped))


class _Group:  # no dataclass: the processes that read files import this, and start in 30 ms
    """What is left out in a folder for one kind of reason."""

    def __init__(self, folder: str, reason: str) -> None:
        self.folder, self.reason, self.number = folder, reason, 0


def _kind(reason: str) -> str:
    """A reason up to what differs from file to file."""
    if _OTHER_CLASS.fullmatch(reason):
        return _STRANGER
    for beginning in (LINK, SAME):
        if reason.startswith(beginning):
            return beginning
    return _KIND.match(reason)[0]  # type: ignore[index]  # as it matches any text


def count(shortened: Iterable[tuple[str, str]]) -> int:
    """How many entries a list had before `shorten`."""
    matches = (_MORE.match(reason) if path.endswith("/") else None for path, reason in shortened)
    return sum(int(match[1].replace(",", "")) if match else 1 for match in matches)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
