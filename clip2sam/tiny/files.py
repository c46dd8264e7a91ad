"""Where the tiny models' weight files are, and which ones they are. Imports no torch."""

from pathlib import Path

from clip2sam.data.files import file_sha256
from clip2sam.errors import WeightsError

CLIP_FILE = "tiny_clip.safetensors"
SAM_FILE = "tiny_sam.safetensors"

EMBEDDED = {
    CLIP_FILE: (6870180, "df8e1a1fa9d560a36313263982006ca22a4c5e8e4db0458a56c73d082db1b105"),
    SAM_FILE: (4413112, "9ab8c128f3bc475639153f8ea8d0ead9251a1086be63368a70bd3c42a02967d6"),
}
"""Size in bytes and SHA-256 of each embedded file: of every file that a training writes here, the
new ones (`sha256sum weights/*.safetensors`)."""


def embedded_path(name: str) -> Path:
    """The path of an embedded weight file; the file may be missing.

    In a wheel the files are in the package, in a checkout in the repository's `weights/`.
    """
    package = Path(__file__).parents[1]
    inside = package / "embedded" / name
    return inside if inside.exists() else package.parent / "weights" / name


def embedded_file(name: str) -> Path:
    """`embedded_path` of a file that exists and is the right one. It is hashed each time, which
    takes some 10 ms: a file in which one bit is another loads and runs all the same.

    Raises:
        WeightsError: the file is missing, or has another size or SHA-256 than this version's.
    """
    path = embedded_path(name)
    if not path.is_file():
        raise WeightsError(
            f"{path}, a part of clip2sam itself, is missing; install clip2sam again, or train it "
            "with scripts/train_tiny_clip.py and scripts/train_tiny_sam.py"
        )
    if name in EMBEDDED:
        check_embedded_size(path, path.stat().st_size)
        check_embedded_sha256(path, file_sha256(path))
    return path


def check_embedded_size(path: Path, size: int) -> None:
    """Raise a WeightsError unless an embedded file has its size in bytes."""
    expected, _ = EMBEDDED[path.name]
    if size != expected:
        raise WeightsError(
            f"{path} has {size} bytes, expected {expected}: it is cut or another file; {_ADVICE}"
        )


def check_embedded_sha256(path: Path, sha256: str) -> None:
    """Raise a WeightsError unless a measured SHA-256 is that of the embedded file."""
    _, expected = EMBEDDED[path.name]
    if sha256 != expected:
        raise WeightsError(
            f"{path} has SHA-256 {sha256}, expected {expected}: its content changed; {_ADVICE}"
        )


_ADVICE = (
    "install clip2sam again. If you trained it anew: give it as a checkpoint of your own, or write "
    "its size and SHA-256 into clip2sam/tiny/files.py"
)
