"""Weight files: where they are, and whether they are the right ones. Imports no torch.

Layout of the weights folder: each file under its own name. Beside it, the note `<file>.verified`
holds the SHA-256 that was measured and the file's size, times and inode at that moment, so that
gigabytes are not hashed at each start; and the SHA-256 that the server stated at the download. A
file of the hub that is not there is taken from the hub's own caches, if they have it.
"""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pooch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from clip2sam.data.files import file_sha256, is_sha256, write_atomically
from clip2sam.errors import ConfigError, WeightsError, one_line, shown
from clip2sam.models.network import hub_file
from clip2sam.models.presets import (
    PRESETS,
    ClipWeights,
    EmbeddedWeights,
    HubSamWeights,
    Preset,
    SamWeights,
    Weights,
    get_preset,
)
from clip2sam.tiny.files import (
    check_embedded_sha256,
    check_embedded_size,
    embedded_path,
)

_log = logging.getLogger(__name__)

ENVIRONMENT = "CLIP2SAM_WEIGHTS"
"""The environment variable that names the weights folder."""

Kind = Literal["clip", "sam"]
State = Literal["missing", "present", "verified", "damaged"]


def weights_dir(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The weights folder: `chosen`, else CLIP2SAM_WEIGHTS, else the user's cache folder.

    It is not created here and need not exist.
    """
    folder = chosen or os.environ.get(ENVIRONMENT)
    return Path(folder).expanduser() if folder else Path(pooch.os_cache("clip2sam"))


# The files of all presets


@dataclass(frozen=True)
class FileStatus:
    """One weight file of the presets and what is known about it."""

    kind: Kind
    file: str
    presets: tuple[str, ...]
    """Names of the presets that use it."""
    path: Path
    """Where it is or, when it is missing, where to put it by hand."""
    state: State
    """`verified`: unchanged since its SHA-256 was measured and found right. `present`: not measured
    yet, or no SHA-256 is known (CLIP files put there by hand)."""
    size: int | None
    """Bytes: on disk, or expected when it is missing; None when that is not known."""
    sha256: str | None
    """As measured; None when that was not done since the file last changed."""
    url: str
    licence: str
    problem: str = ""
    """What is wrong with a damaged file and what to do."""
    tensors: int | None = None
    """The number of tensors in a file whose SHA-256 nobody states, once `verify` opened it."""


def status(
    weights_dir: str | os.PathLike[str] | None = None,
    presets: Iterable[str | Preset] = tuple(PRESETS),
) -> list[FileStatus]:
    """The files of some presets (by default of all), each once. No file is read or downloaded.

    Raises:
        ConfigError: no such preset.
    """
    return _survey(weights_dir, presets, measure=False)


def verify(
    weights_dir: str | os.PathLike[str] | None = None,
    presets: Iterable[str | Preset] = tuple(PRESETS),
) -> list[FileStatus]:
    """As `status`, but every file that exists is read and hashed, whatever its note says. One whose
    SHA-256 nobody states (a CLIP that was put there by hand) is opened: it must hold tensors.

    Raises:
        ConfigError: no such preset.
    """
    return _survey(weights_dir, presets, measure=True)


def paths(
    preset: str | Preset, *, weights_dir: str | os.PathLike[str] | None = None
) -> dict[str, Path]:
    """{"clip": path, "sam": path}: where a preset's files are, or where to put them by hand.

    Raises:
        ConfigError: no such preset.
    """
    chosen = get_preset(preset)
    return {
        "clip": local_file(chosen.clip, weights_dir).path,
        "sam": local_file(chosen.sam, weights_dir).path,
    }


def _survey(
    folder: str | os.PathLike[str] | None, presets: Iterable[str | Preset], measure: bool
) -> list[FileStatus]:
    users: dict[tuple[Kind, Weights], list[str]] = {}  # presets share files
    for preset in map(get_preset, presets):
        users.setdefault(("clip", preset.clip), []).append(preset.name)
        users.setdefault(("sam", preset.sam), []).append(preset.name)
    return [
        _status_of(kind, tuple(names), local_file(weights, folder), measure)
        for (kind, weights), names in users.items()
    ]


def _status_of(
    kind: Kind, presets: tuple[str, ...], local: "LocalFile", measure: bool
) -> FileStatus:
    weights, path = local.weights, local.path
    size = weights.size
    state: State = "missing"
    sha256, tensors, problem = None, None, ""
    if path.exists():
        size, state = path.stat().st_size, "present"
        try:
            local.check_size()
            sha256 = local.measure() if measure else local.remembered()
            if sha256 is not None:
                local.check_sha256(sha256)
                state = "verified" if local.expected_sha256 else "present"
            if measure and local.expected_sha256 is None:
                tensors = local.count_tensors()
        except OSError as error:
            state, problem = "damaged", str(error)
    return FileStatus(
        kind,
        weights.file,
        presets,
        path,
        state,
        size,
        sha256,
        weights.url,
        weights.licence,
        problem,
        tensors,
    )


def others(folder: str | os.PathLike[str] | None = None) -> list[Path]:
    """Downloaded files that no preset with a name uses: CLIPs that were named by themselves.

    Args:
        folder: the weights folder, see `weights_dir`.
    """
    of_presets = {part.file for preset in PRESETS.values() for part in (preset.clip, preset.sam)}
    found = [note.with_suffix("") for note in sorted(weights_dir(folder).glob("*.verified"))]
    return [path for path in found if path.exists() and path.name not in of_presets]


def by_hand(url: str, size: int | None, path: Path) -> str:
    """What to do about a missing file, for a message."""
    return f"get {url} ({size_text(size)}) and put it at {path}"


def size_text(size: int | None) -> str:
    """A file's size in bytes as it is printed."""
    return "size unknown" if size is None else f"{size:,} bytes"


def check_own_files(
    checkpoints: Iterable[str | os.PathLike[str] | None], sha256: str | Sequence[str]
) -> None:
    """Compare checkpoints of the user's own with the SHA-256 that the user gives.

    Args:
        checkpoints: their paths; None for those that aren't given.
        sha256: 64 hexadecimal digits for each file, in any order; none: nothing is compared.

    Raises:
        ConfigError: it is no SHA-256, or not one for each file.
        WeightsError: a file is missing, or has none of these.
    """
    expected = {one.strip().lower() for one in ((sha256,) if isinstance(sha256, str) else sha256)}
    if not expected:
        return
    wrong = [one for one in expected if not is_sha256(one)]
    if wrong:
        raise ConfigError(
            f"sha256: expected 64 hexadecimal digits, got {shown(wrong[0])}; print those of a file "
            "with sha256sum"
        )
    files = [Path(path) for path in checkpoints if path is not None]
    for path in files:
        if not path.is_file():
            raise WeightsError(f"there is no file {path}; give the path of a checkpoint")
    measured = {path: file_sha256(path) for path in files}
    for path, found in measured.items():
        if found not in expected:
            raise WeightsError(
                f"{path} has SHA-256 {found}, expected {' or '.join(sorted(expected))}: it is "
                "another file, or was changed; get it again from where that SHA-256 is published"
            )
    if unused := expected - set(measured.values()):
        raise ConfigError(
            f"sha256: {min(unused)} is of none of the {len(files)} checkpoints that are given; it "
            "is for --clip-checkpoint and --sam-checkpoint (clip_checkpoint, sam_checkpoint)"
        )


# One file


@dataclass(frozen=True)
class LocalFile:
    """A weight file on this machine, and the note of what was measured."""

    weights: Weights
    path: Path
    """Where it is, or belongs when it is missing."""
    place: Path
    """Where it belongs; `path` is another one if the hub's cache has it."""
    note: Path | None
    """The file that remembers its SHA-256; None for embedded files: an installed package is not
    written to, and they are small enough to be hashed each time."""

    def check(self) -> Path:
        """The path, if the file is right; it is hashed only if it changed since the last time.

        Raises:
            WeightsError: another size or SHA-256 than published.
        """
        self.check_size()
        if self.expected_sha256 is not None:
            self.check_sha256(self.remembered() or self.measure())
        return self.path

    def check_size(self) -> None:
        """Raise a WeightsError unless it is a regular file of the published size."""
        path, weights = self.path, self.weights
        if not path.is_file():
            raise WeightsError(f"{path} is no regular file; move it away and run again")
        size = path.stat().st_size
        if isinstance(weights, EmbeddedWeights) and weights.size is not None:
            check_embedded_size(path, size)
        elif weights.size not in (None, size):
            raise WeightsError(
                f"{path} has {size} bytes, expected {weights.size}: it is cut or another file; "
                f"delete it and run again to get {weights.url}"
            )

    def check_sha256(self, sha256: str) -> None:
        """Raise a WeightsError unless a measured SHA-256 is the expected one."""
        path, expected = self.path, self.expected_sha256
        if isinstance(self.weights, EmbeddedWeights) and expected is not None:
            check_embedded_sha256(path, sha256)
        elif expected not in (None, sha256):
            raise WeightsError(
                f"{path} has SHA-256 {sha256}, expected {expected}: its content changed; "
                f"delete {path} and run again to get {self.weights.url}"
            )

    def count_tensors(self) -> int | None:
        """The number of tensors in a safetensors file, whose header must agree with its size; None
        for files of other forms, which aren't opened.

        Raises:
            WeightsError: it isn't safetensors, is cut, or holds no tensors.
        """
        if self.path.suffix != ".safetensors":
            return None
        try:
            with safe_open(self.path, framework="numpy") as file:
                count = len(file.keys())
        except SafetensorError as error:
            reason = one_line(error)
        else:
            if count:
                return count
            reason = "it holds none"
        raise WeightsError(
            f"{self.path} can't be read as tensors ({reason}): it is cut or another file; delete "
            f"it and run again to get {self.weights.url}"
        )

    @property
    def expected_sha256(self) -> str | None:
        """The SHA-256 that the file must have, None when none is known."""
        if self.weights.sha256 is not None:
            return self.weights.sha256
        return _blob_sha256(self.path) or self._memory().get("stated")

    def remembered(self) -> str | None:
        """The SHA-256 in the note if the file is unchanged since, else None."""
        memory = self._memory()
        return memory["sha256"] if memory and memory["stamp"] == self._stamp() else None

    def _memory(self) -> dict[str, Any]:
        """The note; empty if there is none that can be read."""
        if self.note is None or not self.note.is_file():
            return {}
        try:
            memory = json.loads(self.note.read_bytes())
            return {key: memory[key] for key in ("sha256", "stamp")} | {
                "stated": memory.get("stated")
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.info("%s can't be read (%s): measuring %s again", self.note, error, self.path)
            return {}

    def measure(self) -> str:
        """The file's SHA-256, read from the disk and written into the note.

        Raises:
            WeightsError: the file changed meanwhile.
        """
        stamp = self._stamp()
        sha256 = file_sha256(self.path)
        if self._stamp() != stamp:
            raise WeightsError(
                f"{self.path} changed while it was read; run again when nothing writes to it"
            )
        self.remember(sha256, self._memory().get("stated"))
        return sha256

    def remember(self, sha256: str, stated: str | None = None) -> None:
        """Write the note. In a folder without write permission there is none: then the file is
        hashed at each start.

        Args:
            sha256: as measured.
            stated: what the server stated at the download.
        """
        if self.note is None:
            return
        try:
            memory = json.dumps({"sha256": sha256, "stamp": self._stamp(), "stated": stated})
            write_atomically(self.note, memory.encode())
        except OSError as error:
            _log.info("can't remember that %s was measured: %s", self.path, error)

    def _stamp(self) -> list[int]:
        """Values that change when the content does. The modification time alone can be set back,
        the change time can't."""
        stat = self.path.stat()
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def local_file(weights: Weights, folder: str | os.PathLike[str] | None = None) -> LocalFile:
    """The place of a weight file, which may be missing.

    Args:
        folder: the weights folder, see `weights_dir`.
    """
    if isinstance(weights, EmbeddedWeights):
        path = embedded_path(weights.file)
        return LocalFile(weights, path, path, None)
    inside = weights_dir(folder)
    place = inside / weights.file
    path = place if place.exists() else _in_hub_cache(weights, inside) or place
    return LocalFile(weights, path, place, inside / f"{weights.file}.verified")


def _in_hub_cache(weights: ClipWeights | SamWeights | HubSamWeights, folder: Path) -> Path | None:
    """A copy that the hub's client has downloaded, for another program (HF_HOME, HF_HUB_CACHE) or
    into `hub/` of the weights folder. With another size or hash it is not the file."""
    wanted = hub_file(weights.url)
    if wanted is None:
        return None
    # With a SHA-256 to compare with, the newest revision may do as well.
    revisions = {wanted.revision: None, **({"main": None} if weights.sha256 else {})}
    for cache in (folder / "hub", Path(constants.HF_HUB_CACHE)):
        for revision in revisions:
            found = try_to_load_from_cache(
                wanted.repository, wanted.name, cache_dir=cache, revision=revision
            )
            if not isinstance(found, str) or weights.size not in (None, os.path.getsize(found)):
                continue
            blob = _blob_sha256(Path(found))
            if None in (weights.sha256, blob) or weights.sha256 == blob:
                return Path(found)
    return None


def _blob_sha256(path: Path) -> str | None:
    """In the hub's cache a name is a link to a blob, which is named after its SHA-256; None for
    other files."""
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    return blob if is_sha256(blob) else None
