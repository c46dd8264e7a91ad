"""How speed grows with labels, prompts, the image's size and the batch: images a second, and where
the time goes.

    python benchmarks/growth.py [--sam vit_b] [--precision bf16] [--repeats 3] --output FILE

Writes FILE.json and FILE.png. From a JPEG's bytes to RLE, CLIP ViT-B/16 and SAM with seeded weights
(speed doesn't depend on them), text features computed before. Seeded models find nothing, so the
number of labels that count as present is set: 5, unless it is what grows. The limit is the
floating-point work of both encoders at the speed of one large matrix product on this device.
"""

import argparse
import copy
import io
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from about import about
from matplotlib.figure import Figure
from PIL import Image as PILImage
from segment_anything import sam_model_registry
from torch.utils.flop_counter import FlopCounterMode

import clip2sam
from clip2sam.clip import TEMPLATES
from clip2sam.data.images import Image, load_image
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.models.loading import DTYPES, as_device
from clip2sam.pipeline import Segmenter
from clip2sam.sam import PromptSAM
from clip2sam.sam.encoder import encode_image
from clip2sam.types import Prediction

LABELS, PROMPTS, MEGAPIXELS, BATCHES = (
    (1, 20, 80, 1203),
    (1, 5, 20, 80),
    (0.3, 1, 4, 12, 50),
    (1, 2, 4),
)
STAGES = (
    "decode",
    "prepare",
    "CLIP",
    "surgery, points",
    "SAM's encoder",
    "SAM's decoder",
    "masks, RLE",
)


class Bench:
    """The models, and one timed path of an image through them."""

    def __init__(self, sam: str, precision: str, device: str, repeats: int) -> None:
        torch.manual_seed(0)
        self.device, self.repeats = as_device(device), repeats
        clip = open_clip.create_model("ViT-B-16-quickgelu")
        self.segmenter = clip2sam.load(
            clip=clip, sam=sam_model_registry[sam](), precision=precision, device=str(self.device)
        )
        self.dtype, self._texts = (
            DTYPES[precision],
            torch.randn(max(LABELS), clip.visual.output_dim),
        )

    def labels(self, count: int) -> LabelSet:
        """Labels whose text features are ready."""
        named = as_label_set([f"label {i}" for i in range(count)])
        known = self.segmenter.clip.text_features
        for i, label in enumerate(named.classes):
            feature = torch.nn.functional.normalize(self._texts[i], dim=0).to(self.device)
            known[label.prompts[0], TEMPLATES] = feature
        known["", TEMPLATES] = torch.zeros_like(feature)
        return named

    def with_prompts(self, data: bytes, labels: LabelSet, prompts: int) -> Segmenter:
        """The segmenter with the threshold at which so many labels count as present."""
        features = self.segmenter.encode([load_image(data)])
        scores = self.segmenter.locate(features, labels).presence[0].sort(descending=True).values
        return self.segmenter.with_config(
            presence_threshold=float(scores[min(prompts, len(scores)) - 1]), prompts="label"
        )

    @torch.no_grad()
    def stages(self, data: bytes, labels: LabelSet, segmenter: Segmenter) -> list[float]:
        """Seconds of each of the STAGES."""
        marks = [self._now()]

        def done(value: Any) -> Any:
            marks.append(self._now())
            return value

        image: Image = done(load_image(data))
        features = segmenter.encode([done(segmenter.prepare(image))])
        done(features.tokens(segmenter.config.method))
        maps = segmenter.locate(features, labels)
        prompts = done(segmenter.prompt(maps))
        done(features.embeddings([0]))
        masks = done(segmenter.choose(maps, prompts, segmenter.decode(features, prompts)))
        done(segmenter.results(features, Prediction(maps, prompts, masks)))
        return [b - a for a, b in pairwise(marks)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def row(self, name: str, x: float, data: bytes, labels: int, prompts: int) -> dict[str, Any]:
        """One point of a curve: medians over the repeats."""
        named = self.labels(labels)
        segmenter = self.with_prompts(data, named, prompts)
        self.stages(data, named, segmenter)
        timed = [self.stages(data, named, segmenter) for _ in range(self.repeats)]
        totals = sorted(map(sum, timed))
        row = {
            "curve": name,
            "x": x,
            "seconds": statistics.median(totals),
            "least": totals[0],
            "most": totals[-1],
        }
        row["stages"] = {s: statistics.median(t[i] for t in timed) for i, s in enumerate(STAGES)}
        print(json.dumps(row), flush=True)
        return row

    @torch.no_grad()
    def batch_row(self, data: bytes, batch: int) -> dict[str, Any]:
        """As `row`, for images that the encoders take together; without decoding."""
        named, image = self.labels(20), load_image(data)
        segmenter = self.with_prompts(data, named, 5)

        def run() -> float:
            began = self._now()
            features = segmenter.encode([image] * batch, group=batch)
            segmenter.results(features, segmenter.predict(features, named))
            return (self._now() - began) / batch

        run()
        totals = sorted(run() for _ in range(self.repeats))
        row = {
            "curve": "batch",
            "x": batch,
            "seconds": statistics.median(totals),
            "least": totals[0],
            "most": totals[-1],
        }
        print(json.dumps(row), flush=True)
        return row

    @torch.no_grad()
    def limit(self) -> dict[str, float]:
        """The encoders' work, the device's speed, and the images a second that follow."""
        image, sam = load_image(jpeg(0.3)), self.segmenter.sam
        assert isinstance(sam, PromptSAM), "only SAM's ViTs are counted"
        encoder = sam.sam.image_encoder
        pixels = sam.preprocess([sam.resize(image)]).to(self.dtype)
        with FlopCounterMode(display=False) as counter:
            clip = self.segmenter.clip
            clip.encode_image(clip.preprocess([clip.resize(image)]))
            # Without a device, as on a CPU it runs through operators that aren't counted.
            encode_image(copy.deepcopy(encoder).to("meta"), pixels.to("meta"))
        side = 8192 if self.device.type == "cuda" else 2048
        a = torch.randn(side, side, device=self.device, dtype=self.dtype)
        best = min(self._seconds(lambda: a @ a) for _ in range(8))
        peak = 2 * side**3 / best
        return {"work, TFLOP": counter.get_total_flops() / 1e12, "TFLOP/s": peak / 1e12} | {
            "images a second": peak / counter.get_total_flops()
        }

    def _seconds(self, run: Callable[[], Any]) -> float:
        began = self._now()
        run()
        return self._now() - began


def jpeg(megapixels: float) -> bytes:
    """A JPEG of so many pixels, 4:3, of smooth noise."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    small = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    PILImage.fromarray(small).resize((height * 4 // 3, height), PILImage.Resampling.BICUBIC).save(
        file, "JPEG"
    )
    return file.getvalue()


def draw(report: dict[str, Any]) -> Figure:
    """The four curves with the limit, and what the time goes to in each of the points."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    names = {
        "labels": "labels asked",
        "prompts": "labels present",
        "megapixels": "megapixels",
        "batch": "batch",
    }
    axes = figure.subplots(2, 4)
    for (curve, name), over, under in zip(names.items(), *axes, strict=True):
        rows = [row for row in report["rows"] if row["curve"] == curve]
        x, speed = [row["x"] for row in rows], [1 / row["seconds"] for row in rows]
        spread = [[s - 1 / r["most"] for s, r in zip(speed, rows, strict=True)]]
        spread.append([1 / r["least"] - s for s, r in zip(speed, rows, strict=True)])
        over.errorbar(x, speed, spread, marker="o", color="#0072B2")
        over.axhline(report["limit"]["images a second"], color="#D55E00", linestyle="--")
        over.set(
            xscale="log", xlabel=name, ylim=(0, None), xticks=x, xticklabels=[f"{v:g}" for v in x]
        )
        over.minorticks_off()
        bottom = np.zeros(len(rows))
        for i, stage in enumerate(STAGES if curve != "batch" else ()):
            height = np.array([row["stages"][stage] for row in rows])
            under.bar([f"{v:g}" for v in x], height, bottom=bottom, label=stage, color=f"C{i}")
            bottom += height
        under.set(xlabel=name)
    axes[0, 0].set_ylabel("images a second (dashed: limit)")
    axes[1, 0].set_ylabel("seconds an image")
    axes[1, 3].axis("off")
    axes[1, 3].legend(
        *axes[1, 0].get_legend_handles_labels(), loc="center", title="where the time goes"
    )
    figure.suptitle(
        f"{report['models']}, {report['device']}, {report['threads']} threads, "
        f"commit {report['commit']}"
    )
    return figure


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sam", default="vit_b", choices=["vit_b", "vit_l", "vit_h"])
    parser.add_argument("--precision", default="bf16", choices=list(DTYPES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="without an ending")
    given = parser.parse_args()
    report = about() | {"models": f"CLIP ViT-B/16 and SAM {given.sam}, {given.precision}"}
    bench, small = Bench(given.sam, given.precision, given.device, given.repeats), jpeg(0.3)
    report["limit"] = bench.limit()
    print(json.dumps(report), flush=True)
    report["rows"] = [
        *(bench.row("labels", n, small, n, 5) for n in LABELS),
        *(bench.row("prompts", n, small, 80, n) for n in PROMPTS),
        *(bench.row("megapixels", n, jpeg(n), 20, 5) for n in MEGAPIXELS),
        *(bench.batch_row(small, n) for n in BATCHES),
    ]
    given.output.with_suffix(".json").write_text(json.dumps(report, indent=1))
    draw(report).savefig(given.output.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
