"""Where the tiny models' weight files are. Imports no torch."""

from pathlib import Path

from clip2sam.errors import WeightsError

CLIP_FILE = "tiny_clip.safetensors"
SAM_FILE = "tiny_sam.safetensors"


def embedded_path(name: str) -> Path:
    """The path of an embedded weight file; the file may be missing.

    In a wheel the files are in the package, in a checkout in the repository's `weights/`.
    """
    package = Path(__file__).parents[1]
    inside = package / "embedded" / name
    return inside if inside.exists() else package.parent / "weights" / name


def embedded_file(name: str) -> Path:
    """`embedded_path` of a file that exists.

    Raises:
        WeightsError: the file is missing.
    """
    path = embedded_path(name)
    if not path.is_file():
        raise WeightsError(
            f"{path}, a part of clip2sam itself, is missing; install clip2sam again, or train it "
            "with scripts/train_tiny_clip.py and scripts/train_tiny_sam.py"
        )
    return path
