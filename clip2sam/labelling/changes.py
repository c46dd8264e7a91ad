"""Images that were changed, replaced or added since a run began."""

import warnings
from collections.abc import Sequence
from typing import Literal

from clip2sam.data.images import printable
from clip2sam.data.sources import FileSource, Source
from clip2sam.errors import ImageError, RunError
from clip2sam.labelling.journal import Index, file_stamp
from clip2sam.labelling.manifest import RunFolder, check_source, extend_run

Changed = Literal["again", "refuse"]
"""What becomes of images that were changed since they were labelled, or added: they are labelled
(again), with a warning that names them; or the start is refused."""

NAMED = 5
"""So many images are named; the others are counted."""


def changed_images(run: RunFolder, source: Source, index: Index, changed: Changed) -> set[int]:
    """Ids of the images whose file has another size or time (mtime) than when it was read.

    Files of a `FileSource` only: another source may give a new file each time. A file that is gone
    has not changed: what it showed is in the journal.

    Raises:
        RunError: there are some, and they are to be refused.
    """
    if not isinstance(source, FileSource):
        return set()
    found = {
        image_id: key
        for image_id, key in zip(run.ids, run.keys, strict=True)
        if image_id in index.stamps and _is_other(source, key, index.stamps[image_id])
    }
    _say(run, list(found.values()), "changed since they were labelled", changed)
    return set(found)


def _is_other(source: FileSource, key: str, then: tuple[int, int]) -> bool:
    try:
        now = file_stamp(source.read(key))
    except ImageError:  # now it is a link that leads out of the root: reading it says so
        return True
    return now is not None and now != then


def take_in_new(run: RunFolder, source: Source, changed: Changed) -> RunFolder:
    """The run, with the images that its source has got since behind those that it had.

    They keep the ids that a COCO file or a source of the user's own gives them; else they get the
    next free ones.

    Raises:
        RunError: there are some, and they are to be refused; or the source's ids are other ones
            than when the run began.
        ImageError: the source's ids or keys are not what `Source` asks for.
        OutputError: the manifest can't be written.
    """
    check_source(source)
    known = dict(zip(run.keys, run.ids, strict=True))
    new = [(k, i) for k, i in zip(source.keys, source.ids, strict=True) if k not in known]
    if _has_own_ids(source):
        _check_ids(run, source, known)
    else:
        first = max(run.ids, default=0) + 1
        new = [(key, first + n) for n, (key, _) in enumerate(new)]
    _say(run, [key for key, _ in new], "added since the run began", changed)
    return extend_run(run, [k for k, _ in new], [i for _, i in new]) if new else run


def _has_own_ids(source: Source) -> bool:
    return not isinstance(source, FileSource) or source.origin.lower().endswith(".json")


def _check_ids(run: RunFolder, source: Source, known: dict[str, int]) -> None:
    names = {image_id: key for key, image_id in known.items()}
    for key, image_id in zip(source.keys, source.ids, strict=True):
        then = f"{printable(key)} {known.get(key, image_id)}"
        if known.get(key, image_id) == image_id:
            then = f"{printable(names.get(image_id, key))} {image_id}"
        now = f"{printable(key)} {image_id}"
        if then != now:
            raise RunError(
                f"{printable(run.path)}: the source gives image ids other than when the run began: "
                f"then {then}, now {now}; start in a new output folder"
            )


def _say(run: RunFolder, keys: Sequence[str], what: str, changed: Changed) -> None:
    if not keys:
        return
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    found = (
        f"{printable(run.path)}: {len(keys)} images were {what}: "
        f"{', '.join(map(printable, keys[:NAMED]))}{more}"
    )
    if changed == "refuse":
        raise RunError(
            f"{found}; put the old ones back, start in a new output folder, or have them labelled "
            "(changed='again')"
        )
    warnings.warn(f"{found}; they are labelled now", stacklevel=2)
