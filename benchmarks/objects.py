"""What one mask for each object costs beside one mask for each label: the same images in turn.

    python benchmarks/objects.py [--scenes 60] [--kind plain] [--output FILE.json]

The `tiny` preset with its own settings, 20 labels a scene, most of them absent; from the image in
memory to RLE. A ratio is the time with one mask an object divided by that with one a label.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from about import about

import clip2sam
from clip2sam.analysis.examples import scene_examples
from clip2sam.data.labels import as_label_set
from clip2sam.pipeline import Segmenter


def seconds(segmenter: Segmenter, image: clip2sam.Image, labels: clip2sam.LabelSet) -> float:
    """Of one image, with nothing kept from an earlier time but the text features."""
    start = time.perf_counter()
    segmenter(image, labels)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--kind", default="plain", help="plain, crowd, several or large")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    objects = clip2sam.load("tiny", device="cpu")
    labels = objects.with_config(prompts="label")
    times: dict[str, list[float]] = {"object": [], "label": []}
    for number, example in enumerate(
        scene_examples("validation", options.scenes, 20, 0, options.kind)
    ):
        requested = as_label_set(example.requested)
        if number == 0:
            seconds(objects, example.image, requested)  # models warm up
        objects.clip.encode_labels(requested)  # text features are kept, by both
        order = [("object", objects), ("label", labels)]
        for name, segmenter in order if number % 2 else order[::-1]:
            times[name].append(seconds(segmenter, example.image, requested))
    ratios = sorted(a / b for a, b in zip(times["object"], times["label"], strict=True))
    quarter = len(ratios) // 4
    figures = {
        "kind": options.kind,
        "scenes": len(ratios),
        "seconds": {name: round(statistics.median(own), 4) for name, own in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        "of all": round(sum(times["object"]) / sum(times["label"]), 3),
    }
    print(json.dumps(figures))
    if options.output is not None:
        options.output.write_text(json.dumps(about() | figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
