"""From a preset's name to verified files, or a clear error.

SAM's checkpoints are fetched with pooch's downloader into a `.part` file, resumed where the server can, and get
their name only after their size and SHA-256 were right. CLIP's come through open_clip.

What lies in the weights folder: SAM's files under their own names, CLIP's in `hub/` or, put there by hand, under
`ClipWeights.file`; a `.verified` note beside each says what was measured when, so that gigabytes aren't hashed at
each start.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clip2sam.errors import ConfigError, WeightsError, one_line

if TYPE_CHECKING:  # imported where they are needed: naming and checking files takes none of them
    import requests
    from tqdm import tqdm

_log = logging.getLogger(__name__)

ENVIRONMENT = "CLIP2SAM_WEIGHTS"
_TIMEOUT = (
    10.0,
    60.0,
)  # seconds: to connect, and of silence; a slow but steady transfer may take as long as it likes
_TRIES = 4  # connections in a row that bring nothing new
_WAIT = 1.0  # seconds before the second try, doubled for each one after it
_CHUNK = 1 << 18
_HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)  # open_clip's names, its preferred first


@dataclass(frozen=True)
class ClipWeights:
    """CLIP weights that open_clip knows."""

    model: str
    """open_clip's name of the architecture."""
    pretrained: str
    """open_clip's name of the weights."""
    hub: str
    """The repository that open_clip takes them from."""
    licence: str = "MIT"

    @property
    def file(self) -> str:
        """The name to give the file when it is put into the weights folder by hand."""
        return f"{self.model}-{self.pretrained}.safetensors"

    @property
    def url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.hub, _HUB_FILES[0])


@dataclass(frozen=True)
class SamWeights:
    """A SAM checkpoint with its published size and hash."""

    model_type: str
    """segment-anything's name of the architecture."""
    file: str
    size: int
    """Bytes."""
    sha256: str
    url: str
    licence: str = "Apache-2.0"


@dataclass(frozen=True)
class EmbeddedWeights:
    """A file that travels inside the package."""

    file: str
    licence: str = "Apache-2.0"
    url: str = ""


Weights = ClipWeights | SamWeights | EmbeddedWeights


@dataclass(frozen=True)
class Preset:
    """A CLIP and a SAM that go together."""

    name: str
    clip: ClipWeights | EmbeddedWeights
    sam: SamWeights | EmbeddedWeights
    description: str


def _official_sam(model_type: str, file: str, size: int, sha256: str) -> SamWeights:
    return SamWeights(
        model_type, file, size, sha256, f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    )


_SAM_B = _official_sam(
    "vit_b",
    "sam_vit_b_01ec64.pth",
    375042383,
    "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
)
_SAM_L = _official_sam(
    "vit_l",
    "sam_vit_l_0b3195.pth",
    1249524607,
    "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
)
_SAM_H = _official_sam(
    "vit_h",
    "sam_vit_h_4b8939.pth",
    2564550879,
    "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
)
# The published recipe's CLIP for every SAM: a larger CLIP localises no better by itself (L/14 is often worse).
_OPENAI = ClipWeights("ViT-B-16-quickgelu", "openai", "timm/vit_base_patch16_clip_224.openai")
_LAION = ClipWeights("ViT-B-16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "tiny",
            EmbeddedWeights("tiny_clip.safetensors"),
            EmbeddedWeights("tiny_sam.safetensors"),
            "inside the package, needs no network; it knows only drawn shapes",
        ),
        Preset(
            "vit-b",
            _OPENAI,
            _SAM_B,
            "OpenAI CLIP ViT-B/16 and SAM ViT-B: the fastest for photographs",
        ),
        Preset("vit-l", _OPENAI, _SAM_L, "OpenAI CLIP ViT-B/16 and SAM ViT-L"),
        Preset(
            "vit-h", _OPENAI, _SAM_H, "OpenAI CLIP ViT-B/16 and SAM ViT-H: the published recipe"
        ),
        Preset("vit-h-laion", _LAION, _SAM_H, "LAION-2B CLIP ViT-B/16 and SAM ViT-H"),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of that name; a ConfigError names those there are."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def weights_dir(explicit: str | os.PathLike[str] | None = None) -> Path:
    """The folder for downloaded weights: `explicit`, else CLIP2SAM_WEIGHTS, else the user's cache folder.

    It is not created here and need not exist.
    """
    chosen = explicit or os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("clip2sam"))


_folder = weights_dir  # the functions below have a parameter of that name


# Files: where they are, and whether they are right


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class FileStatus:
    """One weight file of the presets and what is known about it."""

    kind: Literal["clip", "sam"]
    file: str
    presets: tuple[str, ...]
    """The presets that use it."""
    path: Path
    """Where it is or, when it is missing, where to put it by hand."""
    state: Literal["missing", "present", "verified", "damaged"]
    """`verified`: unchanged since its SHA-256 was measured and found right. `present`: not measured yet, or
    nothing is published to compare with (embedded files, and CLIP files put there by hand)."""
    size: int | None
    """Bytes: on disk, or expected when it is missing; None when that is not known."""
    sha256: str | None
    """As measured; None when that was not done since the file last changed."""
    url: str
    licence: str
    problem: str = ""
    """What is wrong with a damaged file and what to do."""


def status(weights_dir: str | os.PathLike[str] | None = None) -> list[FileStatus]:
    """All presets' files, each once, at the cost of a look at the folder: nothing is read or downloaded."""
    return _survey(_folder(weights_dir), measure=False)


def verify(weights_dir: str | os.PathLike[str] | None = None) -> list[FileStatus]:
    """As `status`, with every file that is there read and hashed anew, whatever was remembered."""
    return _survey(_folder(weights_dir), measure=True)


def paths(preset: str, *, weights_dir: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """{"clip": path, "sam": path}: where a preset's files are, or where to put them by hand.

    Raises:
        ConfigError: no such preset.
    """
    chosen, folder = get_preset(preset), _folder(weights_dir)
    return {"clip": _place(chosen.clip, folder), "sam": _place(chosen.sam, folder)}


def _survey(folder: Path, measure: bool) -> list[FileStatus]:
    users: dict[tuple[Literal["clip", "sam"], Weights], list[str]] = {}
    for preset in PRESETS.values():
        users.setdefault(("clip", preset.clip), []).append(preset.name)
        users.setdefault(("sam", preset.sam), []).append(preset.name)
    return [
        _look(kind, weights, tuple(names), folder, measure)
        for (kind, weights), names in users.items()
    ]


def _look(
    kind: Literal["clip", "sam"],
    weights: Weights,
    presets: tuple[str, ...],
    folder: Path,
    measure: bool,
) -> FileStatus:
    path, problem, sha256 = _place(weights, folder), "", None
    state: Literal["missing", "present", "verified", "damaged"] = "missing"
    size = weights.size if isinstance(weights, SamWeights) else None
    if path.exists():
        size, state = path.stat().st_size, "present"
        note = _note(weights, folder)
        try:
            _check_size(weights, path)
            sha256 = _measure(path, note) if measure else _remembered(path, note)
            if sha256 is not None:
                _check_hash(weights, path, sha256)
                state = "verified" if _expected_sha256(weights, path) else "present"
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
    )


def _place(weights: Weights, folder: Path) -> Path:
    """Where a file is, or belongs when there is none."""
    if isinstance(weights, EmbeddedWeights):
        inside = Path(__file__).parents[1] / "embedded" / weights.file
        # In a checkout the files are kept in the top folder and are put into the package when it is built.
        return inside if inside.exists() else Path(__file__).parents[2] / "weights" / weights.file
    by_hand = folder / weights.file
    if isinstance(weights, SamWeights) or by_hand.exists():
        return by_hand
    return _in_hub_cache(weights, folder) or by_hand


def _in_hub_cache(weights: ClipWeights, folder: Path) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in _HUB_FILES:
        found = try_to_load_from_cache(weights.hub, name, cache_dir=folder / "hub")
        if isinstance(found, str):
            return Path(found)
    return None


def _note(weights: Weights, folder: Path) -> Path | None:
    """The file that remembers a measured hash. The package's own folder is left as it is installed."""
    return None if isinstance(weights, EmbeddedWeights) else folder / f"{weights.file}.verified"


def _stamp(path: Path) -> list[int]:
    """What changes with the content: with the change time, putting the old modification time back isn't enough."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remembered(path: Path, note: Path | None) -> str | None:
    """The hash measured earlier, if the file is unchanged since; None when it has to be measured."""
    if note is None or not note.is_file():
        return None
    try:
        memory = json.loads(note.read_bytes())
        return memory["sha256"] if memory["stamp"] == _stamp(path) else None
    except (ValueError, KeyError, TypeError) as error:
        _log.info("%s can't be read (%s): measuring %s again", note, error, path)
        return None


def _measure(path: Path, note: Path | None) -> str:
    """Hash a file and remember the result."""
    stamp = _stamp(path)
    sha256 = file_sha256(path)
    if _stamp(path) != stamp:
        raise WeightsError(f"{path} changed while it was read; run again when nothing writes to it")
    _remember(path, note, sha256)
    return sha256


def _remember(path: Path, note: Path | None, sha256: str) -> None:
    if note is not None:
        try:
            fresh = note.with_name(f"{note.name}.{os.getpid()}")
            fresh.write_text(json.dumps({"sha256": sha256, "stamp": _stamp(path)}))
            os.replace(fresh, note)
        except (
            OSError
        ) as error:  # a shared folder that can't be written to: it costs another hash next time
            _log.info("can't remember that %s was measured: %s", path, error)


def _expected_sha256(weights: Weights, path: Path) -> str | None:
    """The SHA-256 that the file must have, None when nobody published one."""
    if isinstance(weights, SamWeights):
        return weights.sha256
    # The hub's cache is a link from the file's name to a blob, which is named after its SHA-256.
    blob = Path(os.readlink(path)).name if path.is_symlink() else ""
    return blob if len(blob) == 64 and not set(blob) - set("0123456789abcdef") else None


def _check_size(weights: Weights, path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path} is no regular file; move it away and run again")
    size = path.stat().st_size
    if isinstance(weights, SamWeights) and size != weights.size:
        raise WeightsError(
            f"{path} has {size} bytes, expected {weights.size}: it is cut or another file; "
            f"delete it and run again to get {weights.url}"
        )


def _check_hash(weights: Weights, path: Path, sha256: str) -> None:
    expected = _expected_sha256(weights, path)
    if expected not in (None, sha256):
        old = (
            path if isinstance(weights, SamWeights) else path.parents[2]
        )  # the hub's whole folder of that repository
        raise WeightsError(
            f"{path} has SHA-256 {sha256}, expected {expected}: its content changed; "
            f"delete {old} and run again to get {weights.url}"
        )


def _check(weights: Weights, path: Path, folder: Path) -> Path:
    """The path again if the file is right, hashing it only if that was not done since it last changed."""
    _check_size(weights, path)
    if _expected_sha256(weights, path) is not None:
        note = _note(weights, folder)
        _check_hash(weights, path, _remembered(path, note) or _measure(path, note))
    return path


# Fetching


def fetch(
    preset: str,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> dict[str, Path]:
    """Both files of a preset, verified, downloaded if need be: {"clip": path, "sam": path}.

    Raises:
        ConfigError: no such preset.
        WeightsError: as `fetch_clip` and `fetch_sam`.
    """
    return {
        "clip": fetch_clip(preset, weights_dir=weights_dir, offline=offline),
        "sam": fetch_sam(preset, weights_dir=weights_dir, offline=offline, progress=progress),
    }


def fetch_sam(
    which: str | SamWeights,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The verified SAM file of a preset, downloaded if it isn't there.

    A download that breaks goes on where it stopped, now or at the next start; of several starts at once one
    downloads and the others wait for it.

    Args:
        which: a preset's name, or the file itself.
        weights_dir: see the function `weights_dir`.
        offline: never use the network.
        progress: show a bar (on a terminal only).

    Raises:
        ConfigError: no such preset.
        WeightsError: the file is missing and can't be had, or is not the published one. A wrong file that is there
            already is neither used nor replaced.
    """
    weights = which if isinstance(which, SamWeights) else get_preset(which).sam
    folder = _folder(weights_dir)
    path = _place(weights, folder)
    if isinstance(weights, EmbeddedWeights):
        return _embedded(path)
    with _disk_errors(path):
        if path.exists():
            return _check(weights, path, folder)
        if offline:
            raise WeightsError(_missing(weights, path, "the download is forbidden (offline)"))
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f".{weights.file}.lock"):
            if not path.exists():
                _download(weights, path, progress)
                _remember(path, _note(weights, folder), weights.sha256)
            return _check(weights, path, folder)


def fetch_clip(
    which: str | ClipWeights,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Path:
    """The CLIP file of a preset, downloaded by open_clip into `hub/` of the weights folder if it isn't there.

    A file put into the weights folder under `ClipWeights.file` comes first; as nobody published its SHA-256, it is
    trusted to be the right one. The hub's own is compared with the hash that the hub gives it.

    Args:
        which: a preset's name, or the weights themselves.
        weights_dir: see the function `weights_dir`.
        offline: never use the network (so does the hub's own HF_HUB_OFFLINE).

    Raises:
        ConfigError: no such preset.
        WeightsError: the file is missing and can't be had, or was changed after it was downloaded.
    """
    weights = which if isinstance(which, ClipWeights) else get_preset(which).clip
    folder = _folder(weights_dir)
    path = _place(weights, folder)
    if isinstance(weights, EmbeddedWeights):
        return _embedded(path)
    if not path.exists():
        from huggingface_hub import constants

        if offline or constants.HF_HUB_OFFLINE:
            raise WeightsError(_missing(weights, path, "the download is forbidden (offline)"))
        path = _download_clip(weights, path, folder)
    with _disk_errors(path):
        return _check(weights, path, folder)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Say what the disk refused in one line."""
    try:
        yield
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(
            f"{path} can't be written or read: {error.strerror or one_line(error)}; give it room and rights, or choose "
            f"another folder with --weights-dir or {ENVIRONMENT}"
        ) from error


def _embedded(path: Path) -> Path:
    if not path.is_file():
        raise WeightsError(f"{path}, a part of clip2sam itself, is missing; install clip2sam again")
    return path


def _missing(weights: ClipWeights | SamWeights, path: Path, reason: str, again: str = "") -> str:
    return f"{weights.file} is missing: {reason}; {again}get {weights.url} and put it at {path}"


def _lock(path: Path) -> Any:
    """A lock between processes, held as a context; it goes with the process that holds it, even a killed one."""
    import filelock

    lock = filelock.FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning(
            "another process is downloading %s: waiting for it", path.name.removesuffix(".lock")[1:]
        )
        return lock.acquire()


def _download_clip(weights: ClipWeights, by_hand: Path, folder: Path) -> Path:
    import requests
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    try:
        # The hub tries an address that nobody answers for most of a minute; one question settles it.
        requests.head(weights.url, timeout=_TIMEOUT).close()
        source = get_pretrained_cfg(weights.model, weights.pretrained)
        return Path(download_pretrained(source, cache_dir=str(folder / "hub")))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            _missing(weights, by_hand, f"the download failed ({one_line(error)})")
        ) from error


def _download(weights: SamWeights, path: Path, progress: bool) -> None:
    """Bring a file to its place, going on from `.part` if an earlier download left one.

    If it then has the wrong hash it is fetched once more from the start: what was left may have been anything.
    """
    part = path.with_name(path.name + ".part")
    left = part.stat().st_size if part.exists() else 0
    if left > weights.size:
        part.unlink()
        left = 0
    free = shutil.disk_usage(path.parent).free
    if free < weights.size - left:
        raise WeightsError(
            f"{path} needs {weights.size - left} more bytes, but {path.parent} has {free} free; "
            f"make room or choose another folder with --weights-dir or {ENVIRONMENT}"
        )
    _transfer(weights, path, part, progress)
    sha256 = file_sha256(part)
    if sha256 != weights.sha256 and left:
        part.unlink()
        _transfer(weights, path, part, progress)
        sha256 = file_sha256(part)
    if sha256 != weights.sha256:
        part.unlink()
        raise WeightsError(
            f"{weights.url} gave a file with SHA-256 {sha256}, expected {weights.sha256}; it was deleted. "
            f"Try another network, or get it elsewhere and put it at {path}"
        )
    os.replace(part, path)


def _transfer(weights: SamWeights, path: Path, part: Path, progress: bool) -> None:
    """Fill `part` to the expected size over as many connections as it takes, as long as they bring something new."""
    import requests
    from tqdm import tqdm

    furthest = reached = part.stat().st_size if part.exists() else 0
    failures, reason, quiet = 0, "", None if progress else True  # None: no bar unless on a terminal
    with tqdm(
        desc=weights.file,
        total=weights.size,
        initial=reached,
        unit="B",
        unit_scale=True,
        disable=quiet,
    ) as bar:
        while reached < weights.size:
            if failures:
                _log.info("%s: %s; trying again", weights.url, reason)
                time.sleep(_WAIT * 2 ** (failures - 1))
            reason = "the connection ended early"
            try:
                _connect(weights, part, bar)
            except requests.RequestException as error:
                reason = one_line(error)
                if not _passing(error):
                    raise WeightsError(
                        _missing(weights, path, f"the download failed ({reason})")
                    ) from error
            reached = part.stat().st_size
            failures = failures + 1 if reached <= furthest else 0
            furthest = max(furthest, reached)
            if failures == _TRIES:
                stopped = f"the download stopped at {reached} of {weights.size} bytes ({reason})"
                raise WeightsError(_missing(weights, path, stopped, "run again to go on, or "))
    with part.open("rb") as file:
        os.fsync(file.fileno())


def _passing(error: "requests.RequestException") -> bool:
    """Whether trying again may help."""
    import requests

    if isinstance(error, requests.HTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    lost = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, lost) and not isinstance(error, requests.exceptions.SSLError)


def _connect(weights: SamWeights, part: Path, bar: "tqdm[Any]") -> None:
    """One connection: append to `part` what it lacks, or begin again where the server can't resume."""
    import pooch

    with part.open("ab") as file, ExitStack() as stack:
        have = file.tell()

        def begin(response: "requests.Response", **_: Any) -> None:
            """Look at the answer before its content is read."""
            stack.callback(response.close)
            if response.status_code == 200:  # all of it, asked for or not
                expected, offered = (
                    str(weights.size),
                    response.headers.get("Content-Length", str(weights.size)),
                )
            elif response.status_code == 206:
                expected = f"bytes {have}-{weights.size - 1}/{weights.size}"
                offered = response.headers.get("Content-Range", "no range")
            else:
                return  # a redirection, or an error that pooch raises
            if offered != expected:
                raise WeightsError(
                    f"{weights.url} offers {offered} bytes, expected {expected}: it is another file, nothing was "
                    f"taken; get {weights.file} elsewhere and put it at {part.with_suffix('')}"
                )
            if response.status_code == 200:
                file.truncate(0)

        downloader = pooch.HTTPDownloader(
            progressbar=_Meter(file, weights, bar),
            chunk_size=_CHUNK,
            timeout=_TIMEOUT,
            headers={"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {}),
            hooks={"response": begin},
        )
        downloader(weights.url, file, None)


class _Meter:
    """What pooch reports to after each piece: shows the place in the whole file, and stops what is too much."""

    def __init__(self, file: Any, weights: SamWeights, bar: "tqdm[Any]") -> None:
        self.file, self.weights, self.bar, self.total = file, weights, bar, 0

    def update(self, _: int) -> None:
        place = self.file.tell()
        if place > self.weights.size:
            self.file.truncate(0)
            raise WeightsError(
                f"{self.weights.url} gave more than the expected {self.weights.size} bytes: it is another file and "
                f"was deleted; get {self.weights.file} elsewhere"
            )
        self.bar.update(place - self.bar.n)

    def reset(self) -> None:
        """pooch's bar is done at the end of a connection; ours goes on to the end of the file."""

    close = reset
