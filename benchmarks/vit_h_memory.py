"""SAM ViT-H on the CPU: does it load and run within 12 GB?

    python benchmarks/vit_h_memory.py

Writes a seeded checkpoint in the official form and size (2.56 GB, in the folder for temporary
files, deleted at the end), loads it as the presets do, runs the official image encoder once on an
image of 1024 x 1024, and prints the time of each step and the peak of resident memory so far (the
mapped checkpoint counts, as far as it was used). Ends with status 1 above 12 GB.
"""

import argparse
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import torch
from segment_anything import sam_model_registry

from clip2sam.models.checkpoints import load_sam

LIMIT_GB = 12.0


def write_checkpoint(path: Path) -> None:
    """Save seeded weights under the official names; in another process, so that its memory isn't
    counted."""
    with torch.device("meta"):
        names = sam_model_registry["vit_h"]().state_dict()
    generator = torch.Generator().manual_seed(0)
    torch.save(
        {name: torch.randn(t.shape, generator=generator) * 0.02 for name, t in names.items()}, path
    )


def peak_gb() -> float:
    """Peak resident memory of this process in 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def report(step: str, seconds: float) -> None:
    print(f"{step:28} {seconds:8.2f} s   peak {peak_gb():6.2f} GB", flush=True)


def measure(path: Path) -> None:
    """Load and run, with a line after each step."""
    start = time.perf_counter()
    sam = load_sam("vit_h", path)
    report("load", time.perf_counter() - start)
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    with torch.inference_mode():
        embedding = sam.image_encoder(image)
    report("image encoder, one image", time.perf_counter() - start)
    if embedding.shape != (1, 256, 64, 64) or not embedding.isfinite().all():
        raise SystemExit(
            f"the encoder gave {tuple(embedding.shape)}, expected finite values of (1, 256, 64, 64)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    torch.set_num_threads(parser.parse_args().threads)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, fp32"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sam_vit_h.pth"
        writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=(path,))
        writer.start()
        writer.join()
        print(f"checkpoint of {path.stat().st_size} bytes written")
        report("imports", time.process_time())
        measure(path)
    if peak_gb() > LIMIT_GB:
        raise SystemExit(f"peak {peak_gb():.2f} GB, expected at most {LIMIT_GB} GB")


if __name__ == "__main__":
    main()
