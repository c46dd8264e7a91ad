"""The faults that `mutants.py` plants: each is a small, plausible mistake in one file.

To add one: the exact text of one place in a file, the text in its place, and the test files that
have to see it (the one that most likely does first).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: tuple[str, ...]


def faults(file: str, tests: str, *changes: tuple[str, str, str]) -> list[Fault]:
    """Faults of one file: (name, old, new) each; `tests` are names of test files."""
    paths = tuple(f"tests/test_{test}.py" for test in tests.split())
    return [Fault(name, f"clip2sam/{file}", old, new, paths) for name, old, new in changes]


METHOD = [
    *faults(
        "clip/methods.py",
        "methods",
        ("surgery has 7 blocks", "blocks=6", "blocks=7"),
        ("surgery has 5 blocks", "blocks=6", "blocks=5"),
        (
            "surgery with feed-forward",
            'attention="vv", blocks=6, residual=True, feed_forward=False',
            'attention="vv", blocks=6, residual=True, feed_forward=True',
        ),
        ("surgery by key-key", 'attention="vv"', 'attention="kk"'),
        (
            "clearclip with residual",
            "blocks=1, residual=False",
            "blocks=1, residual=True",
        ),
        ("clearclip by key-key", 'attention="qq"', 'attention="kk"'),
        (
            "maskclip without residual",
            'attention="identity", blocks=1, residual=True',
            'attention="identity", blocks=1, residual=False',
        ),
    ),
    *faults(
        "clip/surgery.py",
        "methods golden clip",
        ("new path fed from itself", "_qkv(block, x)", "_qkv(block, new)"),
        (
            "CLS of the new path",
            "torch.cat([x[:, :1], new[:, 1:]], dim=1)",
            "torch.cat([new[:, :1], new[:, 1:]], dim=1)",
        ),
        ("no last norm", "visual.ln_post(x) @ visual.proj", "x @ visual.proj"),
        (
            "positions resized by bicubic",
            'mode="bilinear", align_corners=False)\n    grid = grid.flatten',
            'mode="bicubic", align_corners=False)\n    grid = grid.flatten',
        ),
        (
            "positions resized with antialiasing",
            'mode="bilinear", align_corners=False)\n    grid = grid.flatten',
            'mode="bilinear", antialias=True)\n    grid = grid.flatten',
        ),
        (
            "positions: rows and columns swapped",
            "F.interpolate(grid, (rows, cols)",
            "F.interpolate(grid, (cols, rows)",
        ),
        (
            "prior from key to query",
            "(method.prior(*grid)).to(like)",
            "(method.prior(*grid)).mT.to(like)",
        ),
        ("prior one token off", "F.pad(prior, (1, 0, 1, 0))", "F.pad(prior, (0, 1, 0, 1))"),
        ("qq+kk without kk", "return first + rest[0] if rest else first", "return first"),
        (
            "too few blocks wrap around",
            "max(len(blocks) - method.blocks, 0)",
            "len(blocks) - method.blocks",
        ),
        ("ResNet: CLS is no mean", "x.mean(dim=1, keepdim=True), x", "x[:, :1], x"),
    ),
    *faults(
        "clip/model.py",
        "methods clip pipeline",
        (
            "division by std left out",
            "(pixels - self._mean) / self._std",
            "pixels - self._mean",
        ),
        ("bilinear instead of bicubic", "BICUBIC if bicubic", "BILINEAR if bicubic"),
        (
            "given resolution ignored",
            "side = resolution or self.resolution",
            "side = self.resolution",
        ),
        (
            "tokens not normalised",
            "F.normalize(dense.float(), dim=-1), grid",
            "dense.float(), grid",
        ),
        (
            "first synonym only",
            "for p in c.prompts]).mean(dim=0)",
            "for p in c.prompts])[0]",
        ),
        (
            "class features not normalised",
            "return F.normalize(torch.stack(rows), dim=-1)",
            "return torch.stack(rows)",
        ),
        (
            "templates not in the key of the cache",
            "self.text_features.get((prompt, templates))",
            "self.text_features.get((prompt, TEMPLATES))",
        ),
    ),
    *faults(
        "clip/text.py",
        "clip golden",
        ("one template less", '    "this is one {} in the scene.",\n', ""),
        (
            "texts of a prompt not normalised",
            "F.normalize(encode_tokens(model, tokenizer(batch)).float(), dim=-1)",
            "encode_tokens(model, tokenizer(batch)).float()",
        ),
        (
            "positions by place in the tree",
            "positional_embedding[tree.depths.to(device)]",
            "positional_embedding[: len(tree.depths)]",
        ),
    ),
    *faults(
        "similarity.py",
        "methods golden similarity pipeline",
        ("temperature 1", "TEMPERATURE = 2.0", "TEMPERATURE = 1.0"),
        (
            "weights not divided by their mean",
            "weights / weights.mean(dim=-1, keepdim=True)",
            "weights",
        ),
        (
            "nothing redundant taken out",
            "terms.similarity.sub_(terms.redundant)",
            "terms.similarity",
        ),
        (
            "weights by the first patch",
            "(TEMPERATURE * similarity[:, 0])",
            "(TEMPERATURE * similarity[:, 1])",
        ),
        (
            "weights of the batch's first image",
            "similarity *= weights[:, None]",
            "similarity *= weights[:1, None]",
        ),
        (
            "maps: rows and columns swapped",
            "unflatten(2, (rows, cols))",
            "unflatten(2, (cols, rows))",
        ),
        ("maps with the CLS token", "scores[:, 1:].transpose", "scores[:, :-1].transpose"),
        ("resized maps with aligned corners", "align_corners=False", "align_corners=True"),
        (
            "an equal distractor beats",
            "cells.amax(dim=-1) < rivals",
            "cells.amax(dim=-1) <= rivals",
        ),
        (
            "a distractor beats from anywhere",
            "rivals.gather(1, peak)",
            "rivals.amax(dim=-1, keepdim=True)",
        ),
    ),
    *faults(
        "data/presence.py",
        "methods pipeline labelling_export",
        (
            "presence above, not at, the threshold",
            "(scores >= thresholds)",
            "(scores > thresholds)",
        ),
        ("distractors don't matter", "(scores >= thresholds) & ~beaten", "(scores >= thresholds)"),
        ("a score that is NaN is present", "(scores == scores) & (", "("),
    ),
]

POINTS = [
    *faults(
        "points.py",
        "methods points golden",
        (
            "half grid by area",
            'F.interpolate(maps, cells, mode="bilinear", align_corners=False)',
            "F.adaptive_avg_pool2d(maps, cells)",
        ),
        (
            "grid by bilinear resizing",
            "F.adaptive_avg_pool2d(maps, cells)",
            'F.interpolate(maps, cells, mode="bilinear", align_corners=False)',
        ),
        ("grid not scaled", "return min_max(pooled)", "return pooled"),
        ("points above, not at, the threshold", "(cells >= threshold)", "(cells > threshold)"),
        ("more than half positive", ".clamp(max=len(slots))", ".clamp(max=len(slots) - 1)"),
        (
            "lowest instead of highest",
            "rank.gather(2, (rows * cols - positive + slots).clamp(max=last))",
            "rank[..., : len(slots)]",
        ),
        (
            "corners instead of centres",
            "[chosen % cols + 0.5, chosen // cols + 0.5]",
            "[chosen % cols + 0.0, chosen // cols + 0.0]",
        ),
        (
            "x and y swapped",
            "[chosen % cols + 0.5, chosen // cols + 0.5]",
            "[chosen // cols + 0.5, chosen % cols + 0.5]",
        ),
        (
            "height and width swapped",
            "(width / cols, height / rows) for",
            "(height / cols, width / rows) for",
        ),
        ("cells not by their columns", "chosen // cols + 0.5]", "chosen // rows + 0.5]"),
        (
            "cap keeps the worst positives",
            "(rows * cols - positive + slots)",
            "(rows * cols - count + slots)",
        ),
        ("no cap on negatives", "else count.clamp(max=max_negative)", "else count"),
        ("absent labels are prompted", "keep & (point_labels == 1).any", "(point_labels == 1).any"),
        ("points rounded", "coords.floor().long()", "coords.round().long()"),
    ),
    *faults(
        "candidates.py",
        "methods pipeline",
        (
            '"both" without predicted IoU',
            "return agreement + candidates.predicted_iou",
            "return agreement",
        ),
        (
            '"both" without agreement',
            "return agreement + candidates.predicted_iou",
            "return candidates.predicted_iou",
        ),
        ("agreement of the unscaled map", "heat = min_max(maps)[:, None]", "heat = maps[:, None]"),
        ("agreement without the union", "return overlap / union", "return overlap"),
    ),
    *faults(
        "pipeline.py",
        "instances",
        (
            "contrast with the first label's map",
            "fine = fine_maps(maps.raw[prompts.image_index, prompts.label_index])",
            "fine = fine_maps(maps.raw[prompts.image_index, prompts.label_index * 0])",
        ),
        (
            "masks of all labels compete",
            "group = label[:, None] == label",
            "group = torch.ones_like(label[:, None] == label)",
        ),
        (
            "the score without stability",
            "score = score * stability(logits) * agrees[row, best]",
            "score = score * agrees[row, best]",
        ),
    ),
    *faults(
        "instances.py",
        "instances pipeline",
        (
            "x and y of an object swapped",
            "torch.stack([cell % wide + 0.5, cell // wide + 0.5], dim=-1)",
            "torch.stack([cell // wide + 0.5, cell % wide + 0.5], dim=-1)",
        ),
        (
            "an object half a fine cell off",
            "torch.stack([cell % wide + 0.5, cell // wide + 0.5], dim=-1)",
            "torch.stack([cell % wide + 2.5, cell // wide + 0.5], dim=-1)",
        ),
        (
            "objects of absent labels",
            "(maps.present & grids.isfinite()",
            "(grids.isfinite()",
        ),
        (
            "size of the first image for all",
            "fine_cells[owner]",
            "fine_cells[owner * 0]",
        ),
        (
            "weak maxima are objects",
            "height < threshold * heights[0]",
            "height < 0 * heights[0]",
        ),
        (
            "slopes are objects",
            "left = left.masked_fill(~is_maximum, -torch.inf)",
            "left = left",
        ),
        (
            "objects as near as you like",
            "down + across < TOKENS_APART**2",
            "down + across < 0.01",
        ),
        (
            "the grid is not asked",
            "left = fine.masked_fill(~allowed, -torch.inf)",
            "left = fine",
        ),
        (
            "no negative points with an object",
            "places = torch.cat([places, coords[own]], dim=1)",
            "places = torch.cat([places, 0 * coords[own]], dim=1)",
        ),
    ),
    *faults(
        "scoring.py",
        "instances pipeline",
        (
            "contrast below 0",
            "(inside - around).clamp(min=0)",
            "(inside - around)",
        ),
        (
            "the ring has the mask in it",
            "for weight in (coverage, wider - coverage)",
            "for weight in (coverage, wider)",
        ),
        ("duplicates by containment alone", "(shared > iou * either) | ", ""),
        (
            "duplicates by IoU alone",
            " | (shared > contained * smaller)",
            "",
        ),
        (
            "the worst of each object",
            "rank = order.argsort(descending=True, stable=True)",
            "rank = order.argsort(descending=False, stable=True)",
        ),
        (
            "a mask that is out still takes others out",
            "lead = alive & ~(rival & alive).any(dim=1)",
            "lead = alive & ~rival.any(dim=1)",
        ),
        (
            "shares of the image's best",
            "group = label_index[:, None] == label_index",
            "group = label_index[:, None] >= -1",
        ),
        (
            "agreement is the bare contrast",
            "return self.contrast / (self.contrast + HALF_CONTRAST)",
            "return self.contrast",
        ),
    ),
    *faults(
        "config.py",
        "methods pipeline",
        ("default candidate by agreement", '= "both"', '= "agreement"'),
        ("default candidate by predicted IoU", '= "both"', '= "predicted_iou"'),
        ("default grid 14", "grid: Grid = 7", "grid: Grid = 14"),
        ("published at the model's resolution", "        resolution=512,\n", ""),
        ("published with a presence decision", "        presence_threshold=None,\n", ""),
    ),
    *faults(
        "pipeline.py",
        "pipeline",
        (
            "the worst candidate is kept",
            "(candidates, agrees).argmax(dim=-1)",
            "(candidates, agrees).argmin(dim=-1)",
        ),
        ("distractors get masks", "& ~distractor", ""),
        (
            "a class's own threshold ignored",
            "labels.thresholds(self.config.presence_threshold)",
            "[self.config.presence_threshold] * len(labels.classes)",
        ),
        (
            "agreement with the first image's map",
            "heat = raw[prompts.image_index, prompts.label_index]",
            "heat = raw[prompts.image_index * 0, prompts.label_index]",
        ),
    ),
    *faults(
        "pipeline.py",
        "locate",
        (
            "locator lost with other settings",
            "replace(self.config, **changes), self.locator)",
            "replace(self.config, **changes))",
        ),
    ),
    *faults(
        "analysis/compare.py",
        "compare",
        (
            "one absent label too many",
            "kept = int(false_masks * len(ordered))",
            "kept = int(false_masks * len(ordered)) + 1",
        ),
        (
            "the threshold keeps the next one",
            "float(np.nextafter(highest, np.float32(np.inf)))",
            "float(highest)",
        ),
        ("present labels choose the threshold", "            if not example.truth[c.name]\n", ""),
        ("methods judged at one threshold", "threshold_for(one, chosen_on, labels)", "0.1"),
        (
            "the sheet's first label",
            "result.maps[result.class_names.index(label)]",
            "result.maps[0]",
        ),
        (
            "the sheet's IoU of the area",
            "int((mask & truth).sum()) / max(union, 1)",
            "int(mask.sum()) / max(union, 1)",
        ),
    ),
    *faults(
        "visualize/sheet.py",
        "compare",
        ("absent labels with an IoU", 'if mask.any() else "absent"', 'if True else "absent"'),
        (
            "the two lines swapped",
            "upper, lower = top - _HEADING - high, top - 2 * (_HEADING + high)",
            "lower, upper = top - _HEADING - high, top - 2 * (_HEADING + high)",
        ),
        ("rows over each other", "        top -= height\n", ""),
    ),
    *faults(
        "features.py",
        "methods pipeline",
        (
            "features kept for another method",
            "if (method, side) not in self._tokens:",
            "if not self._tokens:",
        ),
    ),
    *faults(
        "locate.py",
        "locate pipeline",
        (
            "redundant feature beside background prompts",
            "if len(text) == 1 else None",
            "if len(labels.classes) == 1 else None",
        ),
        ("boxes in rows for columns", "y[:, :, None] & x[:, None]", "x[:, :, None] & y[:, None]"),
        ("boxes overwrite each other", 'inside, "amax"', 'inside, "sum"'),
        ("boxes without a centre", "        | (cell == centre[:, i, None])\n", ""),
        ("the border of a box is its peak", "(1 - FALL * away)", "(1 + FALL * away)"),
        (
            "feature surgery always",
            "        if self.surgery:\n",
            "        if True:\n",
        ),
        ("boxes of one size", "proposals.boxes)[proposals.image_index]", "proposals.boxes)[:1]"),
    ),
    *faults(
        "proposals.py",
        "locate",
        ("proposals of absent labels", "keep = present[image, label] & (", "keep = ("),
        ("a share of all labels' best", "threshold * best[group]", "threshold * best.max()"),
        ("one proposal too many", "(rank < most)", "(rank <= most)"),
        (
            "the weakest proposals",
            "score.argsort(descending=True",
            "score.argsort(descending=False",
        ),
        ("ranks over all labels", "- starts[group[order]]", "- 0 * starts[group[order]]"),
        (
            "boxes of other proposals",
            "boxes=proposals.boxes[rows]",
            "boxes=proposals.boxes[: len(rows)]",
        ),
        ("the last cell left out", "torch.where(some, at + 1, 0.0)", "torch.where(some, at, 0.0)"),
        ("a fit without the mask's own area", "(right - left) * (bottom - top) + ", ""),
    ),
]

SAM = [
    *faults(
        "sam/prompted.py",
        "sam pipeline",
        (
            "continuous points given to SAM",
            "pixel_indices(prompts.coords) * scale",
            "prompts.coords * scale",
        ),
        ("boxes not scaled to the frame", "prompts.boxes * scale.repeat(1, 2)", "prompts.boxes"),
        ("boxes as y, x", "scale.repeat(1, 2)", "scale.flip(1).repeat(1, 2)"),
        (
            "embeddings in the order of all images",
            "tuple(n for n in prompts.counts if n)",
            "prompts.counts",
        ),
    ),
    *faults(
        "sam/cutter.py",
        "sam cutter",
        ("frame's sides cut, not rounded", "int(side * scale + 0.5)", "int(side * scale)"),
        ("bicubic resizing for SAM", "PILImage.Resampling.BILINEAR", "PILImage.Resampling.BICUBIC"),
        ("padding not cut", "frame[None, :, :height, :width]", "frame[None]"),
        (
            "x and y factors swapped",
            "(wide / width, high / height)",
            "(high / height, wide / width)",
        ),
    ),
    *faults(
        "sam/prompts.py",
        "sam",
        ("boxes without half a pixel", "boxes.view(-1, 2, 2) + 0.5", "boxes.view(-1, 2, 2)"),
        ("a box's corners swapped", "for i in (2, 3)]", "for i in (3, 2)]"),
    ),
    *faults(
        "sam/rle.py",
        "sam",
        ("changes down the rows", "masks.transpose(1, 2).flatten(1)", "masks.flatten(1)"),
    ),
]

COCO = [
    *faults(
        "coco/rle.py",
        "coco export",
        (
            "box as x, y, height, width",
            "right - left + 1, bottom - top + 1]",
            "bottom - top + 1, right - left + 1]",
        ),
        ("box as y, x", "[left, top, right", "[top, left, right"),
        ("box as corners", "right - left + 1, bottom - top + 1]", "right, bottom]"),
        (
            "box one pixel short",
            "right - left + 1, bottom - top + 1]",
            "right - left, bottom - top]",
        ),
        (
            "box of a run over two columns",
            "top, bottom = 0, height - 1",
            "top, bottom = int((first % height).min()), int((last % height).max())",
        ),
        ("RLE down the rows", ".reshape(width, height)", ".reshape(height, width)"),
        (
            "RLE size as width, height",
            '"size": list(mask.shape),',
            '"size": list(mask.shape[::-1]),',
        ),
        ("runs of no length counted", "[1::2][inside > 0]", "[1::2]"),
        ("area of the runs outside", "int(inside.sum())", "int(runs[::2].sum())"),
        ("no differences in packed RLE", "    numbers[2::2] = np.cumsum(numbers[2::2])\n", ""),
    ),
    *faults(
        "coco/many.py",
        "coco",
        (
            "many: top of a run over two columns",
            "np.where(one, first - left * height, 0)",
            "first - left * height",
        ),
        (
            "many: bottom of a run over two columns",
            "np.where(one, last - right * height, height - 1)",
            "last - right * height",
        ),
        (
            "many: sums run into the next mask",
            "        runs -= np.repeat(before, pairs)\n",
            "",
        ),
        (
            "many: boxes of the first run",
            "np.maximum.reduceat(right, starts) + 1",
            "right[starts] + 1",
        ),
        ("many: numbers of any length", "numbers[lengths > 7]", "numbers[lengths > 700]"),
        (
            "many: negative runs are sound",
            "if min(outside.min(), inside.min()) < 0:",
            "if min(outside.min(), inside.min()) < -(2**62):",
        ),
        ("many: no negative numbers", "(codes[ends] & 16)", "(codes[ends] & 32)"),
    ),
    *faults(
        "coco/polygons.py",
        "coco",
        ("holes are filled", "[cut_out(ring, holes)", "[cut_out(ring, [])"),
        ("polygons at the origin", "ring[:, 0] / 2), (x, y))", "ring[:, 0] / 2), (0, 0))"),
        ("parts joined without the way back", "(ring, ring[:1], start)", "(ring, start)"),
    ),
    *faults(
        "coco/outlines.py",
        "outlines",
        ("outlines that fit badly stay", "if outline.iou >= LEAST_IOU:", "if outline:"),
        ("a mask of specks vanishes", ", largest)", ", 1e9)"),
        (
            "corners farther away than allowed",
            "[:, None], tolerance, True)",
            "[:, None], 2 * tolerance, True)",
        ),
        (
            "lines one pixel wide collapse",
            "fewer if 2 * _area(fewer) > _area(ring) else ring",
            "fewer",
        ),
        ("pinholes stay", " if _area(hole) >= least]", "]"),
    ),
    *faults(
        "coco/document.py",
        "coco export",
        ("iscrowd 1", '"iscrowd": 0', '"iscrowd": 1'),
        ("empty masks kept", "if area > 0 and mask not in seen:", "if mask not in seen:"),
        ("a mask that is there twice", " and mask not in seen:", ":"),
        ("category ids from 0", "enumerate(classes, 1)\n    ]", "enumerate(classes)\n    ]"),
        ("annotation ids from 0", '{"id": len(annotations) + 1', '{"id": len(annotations)'),
        ("area of the box", '"area": mask.area', '"area": mask.box[2] * mask.box[3]'),
        ("no supercategory", '"supercategory": c.supercategory', '"supercategory": ""'),
        ("no licenses", ', "licenses": []', ""),
        (
            "image's height and width swapped",
            '"height": int(height),\n        "width": int(width),',
            '"height": int(width),\n        "width": int(height),',
        ),
        ("scores above 1", "if not 0 <= annotation.score <= 1:", "if not 0 <= annotation.score:"),
        (
            "masks of another size",
            'if annotation.rle["size"] != list(record.size):',
            'if len(annotation.rle["size"]) != len(record.size):',
        ),
        ("names that lead out", 'if ".." in name.split("/"):', 'if ".." == name:'),
        ("failed images", 'if record.state == "failed":', 'if record.state == "":'),
        ("an id given twice", "if number in ids:", "if number < 1:"),
    ),
    *faults(
        "coco/write.py",
        "coco",
        (
            "written without a check",
            "violations := validate(document)",
            "violations := validate([])",
        ),
    ),
    *faults(
        "data/records.py",
        "records labelling_journal labelling_run labelling_flow",
        (
            "scores with a float32's digits",
            "float(str(np.float32(value)))",
            "float(np.float32(value))",
        ),
        ("the journal forgets who is beaten", "tuple(i in beaten for", "tuple(i is beaten for"),
        ("points of the journal without kinds", "(x, y, kind) for x", "(x, y, 1) for x"),
    ),
    *faults(
        "result.py",
        "methods pipeline interop",
        ("empty masks are results", "mask_utils.area(rle) > 0", "mask_utils.area(rle) >= 0"),
        ("boxes of results as x, y, w, h", "        table[:, 2:] += table[:, :2]\n", ""),
        ("masks of the batch's first image", "first = sum(prompts.counts[:index])", "first = 0"),
        ("padding among the points", "one[one[:, 2] != PADDING]", "one[one[:, 2] != -2]"),
    ),
]

EXPORT = [
    *faults(
        "export/coco.py",
        "export",
        (
            "merge: annotation ids from 1",
            "_next_id(images), _next_id(annotations)",
            "_next_id(images), 1",
        ),
        (
            "merge: categories by order",
            "[known[c.name] for c in self._classes]",
            "list(range(1, len(self._classes) + 1))",
        ),
        (
            "merge: images of another size",
            'if (there["height"], there["width"]) != (row["height"], row["width"]):',
            'if there["height"] < 1:',
        ),
        (
            "merge: masks that are there come again",
            "self._old.has(image_id, category_id, mask)",
            "self._old is None",
        ),
        (
            "merge: masks in one box are the same",
            "any(_is_same(segmentation, mask) for segmentation in near)",
            "near",
        ),
        (
            "merge: masks of any class are the same",
            ' if r["category_id"] == category_id]',
            "]",
        ),
        (
            "merge: simplified polygons are not known again",
            "return bool(drawn) and",
            "return False and",
        ),
        ("merge: new id for an old image", 'return int(there["id"])', 'return int(row["id"])'),
        (
            "merge: the file itself is written",
            "os.path.realpath(self.merge) == os.path.realpath(output)",
            "os.path.realpath(self.merge) == output.name",
        ),
        (
            "merge: the old head is lost",
            "for key, value in (old or {}).items() if key not in _SECTIONS",
            "for key, value in {}.items()",
        ),
        (
            "images' own ids are lost",
            "if there is None and self._old is not None:",
            "if there is None:",
        ),
    ),
    *faults(
        "export/yolo.py",
        "export",
        ("YOLO: width and height swapped", "/ (width, height)", "/ (height, width)"),
        ("YOLO: classes from 1", 'f"{mask.number - 1} "', 'f"{mask.number} "'),
        (
            "YOLO: names from 1",
            "for i, c in enumerate(classes)}",
            "for i, c in enumerate(classes, 1)}",
        ),
        (
            "YOLO: split by the image's number",
            "split_of(record.file_name",
            "split_of(str(record.image_id)",
        ),
        ("YOLO: folders that hide the label file", 'reserved=("images",)', ""),
        (
            "YOLO: an image stays in both splits",
            "(folder / other / file).unlink(missing_ok=True)",
            "pass",
        ),
    ),
    *faults(
        "export/names.py",
        "export",
        (
            "names: one file for two images",
            "if above + slash + fitted in self._taken:",
            "if not name:",
        ),
    ),
    *faults(
        "export/placing.py",
        "export",
        ("YOLO: links that break", "os.link(source, beside)", "os.symlink(source, beside)"),
    ),
    *faults(
        "export/label_studio.py",
        "export",
        (
            "Label Studio: width and height swapped",
            "(100 / width, 100 / height)",
            "(100 / height, 100 / width)",
        ),
        (
            "Label Studio: fractions, no percent",
            "(100 / width, 100 / height)",
            "(1 / width, 1 / height)",
        ),
        (
            "Label Studio: names not escaped",
            "quote(os.fsencode(record.file_name))",
            "record.file_name",
        ),
        (
            "Label Studio: first part only",
            "for part, polygon in enumerate(polygons[i])",
            "for part, polygon in enumerate(polygons[i][:1])",
        ),
    ),
    *faults(
        "export/png.py",
        "export",
        ("PNG: classes from 0", "= mask.number\n", "= mask.number - 1\n"),
        (
            "PNG: the worst on top",
            "key=lambda m: m.annotation.score)",
            "key=lambda m: -m.annotation.score)",
        ),
        ("PNG: 256 classes in 8 bits", "if classes <= 255 else", "if classes <= 256 else"),
    ),
    *faults(
        "export/results.py",
        "export",
        (
            "results: categories from 0",
            '"category_id": mask.number',
            '"category_id": mask.number - 1',
        ),
        (
            "results: with a box",
            '"segmentation": mask.annotation.rle,',
            '"segmentation": mask.annotation.rle,\n                            "bbox": mask.box,',
        ),
    ),
    *faults(
        "export/tables.py",
        "tables",
        ("tables: images among the patterns", 'f"images.{output.name}"', 'f"{output.name}.images"'),
        ("tables: names as bytes", '"backslashreplace"', '"surrogateescape"'),
        ("tables: no prompts", '"presence", "prompt")', '"presence")'),
        (
            "tables: categories from 0",
            '"category_id": mask.number',
            '"category_id": mask.number - 1',
        ),
        (
            "tables: the next class's name",
            "classes[mask.number - 1].name",
            "classes[-mask.number].name",
        ),
        ("tables: height is width", '"height": row["height"]', '"height": row["width"]'),
    ),
    *faults(
        "export/jsonl.py",
        "tables",
        ("JSON lines: one too many", "count = 0", "count = 1"),
        (
            "JSON lines: names the other file",
            "with atomic_file(images_beside(output)) as of_images, atomic_file(output) as file:",
            "with atomic_file(output) as file, atomic_file(images_beside(output)) as of_images:",
        ),
    ),
    *faults(
        "export/parquet.py",
        "tables",
        ("Parquet: scores as float32", '"score", pa.float64()', '"score", pa.float32()'),
        ("Parquet: areas as int32", '"area", pa.int64()', '"area", pa.int32()'),
        ("Parquet: Arrow's schema", "store_schema=False,", "store_schema=True,"),
        ("Parquet: nothing made it", "document_head(self.info)", "document_head()"),
        ("Parquet: no metadata", "self._writer.add_key_value_metadata(dict(metadata))", "pass"),
        ("Parquet: groups of any bytes", " or size >= GROUP_BYTES", ""),
        ("Parquet: groups of any rows", "rows > GROUP_ROWS - _PACK_ROWS or ", ""),
        ("Parquet: packs of any bytes", " or self._bytes_of_rows >= _PACK_BYTES", ""),
        (
            "Parquet: the last rows are lost",
            "                self._pack()\n                self",
            "                self",
        ),
        (
            "Parquet: the last group is lost",
            "                self._write()\n        finally",
            "                pass\n        finally",
        ),
        ("Parquet: rows twice", "            self._packed = []\n", "            pass\n"),
        ("Parquet: without pyarrow", 'if find_spec("pyarrow") is None:', "if False:"),
        ("Parquet: an image has no rows", "count += 1", "count += 0"),
    ),
    *faults(
        "labelling/run.py",
        "tables",
        (
            "formats beside exporters",
            "if exporters is not None and tuple(formats) != FORMATS:",
            "if False:",
        ),
        ("always COCO", "formats=checked_formats(formats)", "formats=FORMATS"),
        ("COCO at the end", "own_exporters(run, self.formats)", "own_exporters(run, FORMATS)"),
        ("leftovers by the usual names", "own_files(self.formats)", "own_files(FORMATS)"),
    ),
    *faults(
        "labelling/outputs.py",
        "tables",
        ("any format is written", "if wrong or not names:", "if not names:"),
        ("no format is written", "if wrong or not names:", "if wrong:"),
        ("a package is missed at the end", '    if "parquet" in names:\n', "    if False:\n"),
        ("a text is its letters", "(formats,) if isinstance(formats, str) else ", ""),
        ("Parquet says nothing of the run", "ParquetExporter(info=info)", "ParquetExporter()"),
        ("halves of images stay", '"images.annotations.parquet")', ")"),
        (
            "leftovers of COCO's",
            "for form in formats for name in FILES[form]",
            'for form in formats for name in FILES["coco"]',
        ),
    ),
    *faults(
        "labelling/decide.py",
        "labelling_export",
        ("a mask at the limit is a duplicate", ".max() <= limit", ".max() < limit"),
        ("duplicates of any class", " if annotations[k].label == own.label]", "]"),
        (
            "the worst duplicate stays",
            "kept: list[int] = []\n    for i in sorted(range(len(annotations)), "
            "key=lambda i: (-annotations",
            "kept: list[int] = []\n    for i in sorted(range(len(annotations)), "
            "key=lambda i: (annotations",
        ),
        ("weak objects are exported", "and a.share >= least", "and a.share >= 0"),
        ("the run's own share is not asked", "own = run.min_share if", "own = 0.0 if"),
        (
            "one object too many",
            "if taken[annotations[i].label] <= most:",
            "if taken[annotations[i].label] <= most + 1:",
        ),
        (
            "overlap: score and size swapped",
            'if overlap == "score" else',
            'if overlap == "small" else',
        ),
        ("thresholds that the journal can't serve", "limit < floor:", "limit < 0 * floor:"),
        ("nothing kept is still done", 'state="done" if kept else "empty"', 'state="done"'),
        (
            "scores above, not at, the least",
            "a.score >= decision.min_score",
            "a.score > decision.min_score",
        ),
        (
            "the general threshold goes first",
            "decision.class_thresholds.get(name, general)",
            "general",
        ),
    ),
    *faults(
        "labelling/summary.py",
        "labelling_export labelling_run",
        (
            "failed images are exported",
            '        if record.state != "failed":\n            yield record',
            "        yield record",
        ),
    ),
    *faults(
        "labelling/content.py",
        "labelling_export shards",
        (
            "a journal of another run",
            "if record.file_name != keys[record.image_id]:",
            "if record.image_id not in keys:",
        ),
        ("shards that have not begun are left out", "    if missing:\n", "    if False:\n"),
        ("images that are left to do don't count", "    if todo:\n", "    if False:\n"),
        (
            "a shard's images are taken as they are",
            "if digest(listed) != plan.sha256:",
            "if False:",
        ),
        (
            "other settings in another shard",
            '{**other.fingerprint, "threads": other.threads}',
            '{**marks, "threads": other.threads}',
        ),
        (
            "the last shard's date",
            "started = min(filter(None, began), default=None)",
            "started = max(filter(None, began), default=None)",
        ),
    ),
    *faults(
        "labelling/plan.py",
        "shards",
        ("parts are cut unevenly", "[images * n // shards for", "[images // shards * n for"),
        ("no part holds whole files", "if len(units) < shards:", "if True:"),
        ("the next file's start", "starts[max(after - 1, 0) : after + 1]", "starts[after:][:1]"),
        ("ranks from 1", "return Shard(index + 1, count)", "return Shard(max(index, 1), count)"),
        (
            "steps of an array are left out",
            "(task - first) // max(step, 1), count)",
            "task - first, count)",
        ),
        ("any number of shards", "if plan.shards != shards:", "if False:"),
        (
            "shards where a run has begun without",
            "if (path / MANIFEST).exists():",
            "if False:",
        ),
        (
            "another shard's folder",
            "if (tuple(ids), tuple(keys)) != plan.listed(number):",
            "if len(ids) != len(plan.listed(number)[0]):",
        ),
    ),
    *faults(
        "labelling/run.py",
        "shards",
        ("shards' own threads", "if self.plan is None else self.plan.threads", "if True else 0"),
        (
            "a run in shards goes on without",
            "if self.plan is None and is_sharded(self.output):",
            "if False:",
        ),
        (
            "a shard doesn't ask the others",
            "            if other is not None:\n",
            "            if False:\n",
        ),
    ),
]

JOURNAL = [
    *faults(
        "labelling/journal.py",
        "labelling_journal labelling_flow",
        ("no fsync", 'getattr(os, "fdatasync", os.fsync)(self._file)', "pass"),
        ("no fsync after many lines", "self._unsynced >= LINES_PER_SYNC or (", "("),
        ("no fsync after a while", "(self._unsynced and late)", "False"),
        (
            "no fsync at the end",
            "        try:\n            self.sync()\n",
            "        try:\n            pass\n",
        ),
        ("the journal's name is not synced", "            sync_folder(path.parent)\n", ""),
        ("checksum not checked", "!= int(head[1], 16):", "< 0:"),
        ("a torn line stays", "            os.ftruncate(self._file, self.index.end)\n", ""),
        ("half a line stays", "            self._cut(start)\n", ""),
        (
            "a part of a line is written",
            "rest = rest[os.write(self._file, rest) :]",
            "rest = rest[os.write(self._file, rest) * 0 + len(rest) :]",
        ),
        (
            "the first word counts",
            "        self.offsets[image_id]",
            "        if image_id not in self.offsets:\n            self.offsets[image_id]",
        ),
        ("lines cut off without a copy", "        if self.index.behind:\n", "        if False:\n"),
        ("a torn line is a damaged one", "elif not _is_torn(line):", "else:"),
        ("failed stays failed", "else self.failed.discard)", "else self.failed.copy().discard)"),
        ("images of another run", " and head[0] in known", ""),
        (
            "records in the order of the journal",
            "for image_id in ids:\n            if image_id in index.offsets:",
            "for image_id in index.offsets:\n            if image_id in ids:",
        ),
        (
            "the end of the file is the end",
            "self.end = start + length",
            "self.end = max(self.end, start) + 0 * length",
        ),
    ),
    *faults(
        "labelling/journal.py",
        "labelling_journal labelling_changes",
        ("hashes are not read", "head[6].decode() if head[6] else None", "None"),
        ("a pipe is hashed", "if hashed and regular else None", "if hashed else None"),
        (
            "nothing is hashed",
            "if hashed and regular else None",
            "if hashed and not regular else None",
        ),
    ),
    *faults(
        "labelling/changes.py",
        "labelling_changes labelling_run",
        ("times count on a move", " and not moved", ""),
        ("times never count", "return now.time != then.time and not moved", "return False"),
        (
            "sizes don't count",
            "        return True\n    if now.sha256",
            "        return False\n    if now.sha256",
        ),
        (
            "content doesn't count",
            "return now.sha256 != then.sha256",
            "return now.time != then.time",
        ),
        (
            "every time is another content",
            "hashed or (then.sha256 is not None and",
            "hashed or (False and",
        ),
        ("content is looked at where the time differs", "    if hashed or (", "    if ("),
        ("the hash is forgotten", "now._replace(sha256=now.sha256 or then.sha256)", "now"),
        ("new times are not written", "    if not stamps:\n", "    if True:\n"),
        (
            "a missing file of a list is not gone",
            "            if now is None:\n                found.gone.add(key)\n",
            "            if now is None:\n                pass\n",
        ),
        (
            "what a source has no longer is not gone",
            "        if key not in listed:\n            found.gone.add(key)\n",
            "        if key not in listed:\n            pass\n",
        ),
        ("images that are gone are asked for", "if key in gone:", "if key in ():"),
        ("any new place is taken", "if 2 * found < len(keys):", "if False:"),
        (
            "half of the images are too few",
            "if 2 * found < len(keys):",
            "if 2 * found <= len(keys):",
        ),
        (
            "a list's names are enough",
            "if key in there and _is_there(source, key)",
            "if key in there",
        ),
    ),
    *faults(
        "labelling/run.py",
        "labelling_changes labelling_run",
        ("moved without a run", "            if self.moved:\n", "            if False:\n"),
        ("moved where it was", "moved = self.moved and (source", "moved = self.moved or (source"),
        (
            "times don't count where nothing moved",
            "self.moved and (source.origin, root_of(source)) != (run.origin, run.root)",
            "self.moved",
        ),
        ("the run stays where it was", "run = move_run(run, source)", "pass"),
        (
            "moved before it is looked at",
            "            found = find_changes(\n",
            "            run = move_run(run, source)\n            found = find_changes(\n",
        ),
        (
            "the link's own paths",
            "return open_source(begun.origin, begun.root)",
            "return open_source(self.source, begun.root)",
        ),
        (
            "no hashes in the journal",
            "hashed=self.hash_images,\n            )",
            "hashed=False,\n            )",
        ),
    ),
    *faults(
        "labelling/manifest.py",
        "labelling_changes labelling_run",
        ("links are other places", "not (files and _resolved(then) == _resolved(now))", "then"),
        (
            "names of objects are paths",
            "files = began[1] is not None and top is not None",
            "files = True",
        ),
        (
            "the root stays",
            "_rewrite(run, source=source.origin, root=root, kind=kind)",
            "_rewrite(run, source=source.origin, kind=kind)",
        ),
    ),
    *faults(
        "labelling/fingerprint.py",
        "labelling_run",
        ("fingerprint without version", '        "version": __version__,\n', ""),
        ("fingerprint without preset", '        "preset": preset,\n', ""),
        ("fingerprint without max_pixels", '        "max_pixels": max_pixels,\n', ""),
        ("fingerprint without templates", '            "templates": labels.templates,\n', ""),
        (
            "fingerprint without classes",
            '"classes": [class_row(c) for c in labels.classes]',
            '"classes": []',
        ),
        ("fingerprint: one change passes", "    if changed:\n", "    if len(changed) > 1:\n"),
        ("fingerprint: new settings pass", "for place in {**old, **new}", "for place in {**old}"),
        (
            "fingerprint: all functions alike",
            'return f"{named.__module__}.{named.__qualname__}"',
            'return "function"',
        ),
    ),
    *faults(
        "labelling/engine.py",
        "labelling_run labelling_flow",
        (
            "fingerprint without resolution",
            '            "resolution": self.segmenter.view_side,\n',
            "",
        ),
        ("fingerprint without the locator", '            "locator": locator.name,\n', ""),
        ("fingerprint without keep_above", '            "keep_above": self.keep_above,\n', ""),
        ("fingerprint without settings", '            "config": plain(asdict(self.config)),\n', ""),
        (
            "fingerprint without CLIP's weights",
            "{**locator.weights(), ",
            "{",
        ),
        (
            "fingerprint without SAM's weights",
            ', "sam": state_sha256(sam.model.state_dict())}',
            "}",
        ),
        (
            "keep_above raises thresholds",
            "return min(threshold, floor)",
            "return max(threshold, floor)",
        ),
    ),
    *faults(
        "labelling/manifest.py",
        "labelling_run labelling_export",
        ("runs of another format", 'if rows["format"] != FORMAT:', 'if rows["format"] is None:'),
        (
            "exports over the run's own files",
            "if output.resolve() in own:",
            "if output in own[:0]:",
        ),
    ),
    *faults(
        "labelling/lock.py",
        "labelling_lock labelling_run",
        ("no flock", "        lock.acquire(timeout=0)\n", "        pass\n"),
        ("a file system without flock", "if error.errno not in NO_FLOCK:", "if error.errno:"),
        ("the lock stays", "                (path / LOCK).unlink()\n", "                pass\n"),
        (
            "the flock's file of another one is removed",
            "if not os.path.lexists(path / OWNER):",
            "if True:",
        ),
        ("no count", "            self._beats += 1\n", ""),
        ("counts in another place", 'len(\'{"beat":"\')', 'len(\'{"beat":"\') + 11'),
        ("the owner stays", "            if self._is_own():\n", "            if False:\n"),
        (
            "another one's owner file is renewed",
            "if not self._is_token(os.read(file, 4096)):",
            "if not os.read(file, 4096):",
        ),
        ("a loss is not looked at at once", "self._checked = -math.inf  # look at once", "pass"),
        (
            "a full disk ends the thread",
            "            except OSError as error:\n                self._trouble",
            "            except ValueError as error:\n                self._trouble",
        ),
        ("nobody loses a run", "            if not self._is_own():\n", "            if False:\n"),
        ("the dead live", "if not (flocked and _is_dead(left)):", "if True:"),
        (
            "all of this machine are dead",
            "        os.kill(owner.pid, 0)  # asks only\n",
            "        return True\n",
        ),
        (
            "another machine is this one",
            "(owner.boot, owner.host) != (_boot_id(), socket.gethostname())",
            "owner.host != socket.gethostname()",
        ),
        ("without flock the dead are known", "flocked=flock.is_locked", "flocked=True"),
        ("nobody is waited for", "range(math.ceil(LEASE / pause))", "range(0)"),
        ("nobody is alive", "        if now != left:\n", "        if now is now[:0]:\n"),
        ("who has ended is taken over from", "        if now is None:\n            return\n", ""),
        (
            "who is late removes the next owner",
            "    if not is_expected(data):\n",
            "    if False:\n",
        ),
        (
            "no links, nothing put back",
            "            os.rename(aside, path / OWNER)\n",
            "            pass\n",
        ),
        ("any number is a process's", " and 0 < owner.pid < 2**31", ""),
        ("an owner of any values", "return owner if texts and", "return owner if"),
    ),
    *faults(
        "labelling/storage.py",
        "labelling_lock",
        ("a stale handle is an error", "(errno.ENOENT, errno.ESTALE)", "(errno.ENOENT,)"),
        (
            "names that are missing are believed",
            "            os.scandir(path.parent).close()\n",
            "            pass\n",
        ),
        (
            "half a file stays",
            "        path.unlink(missing_ok=True)\n        raise\n",
            "        raise\n",
        ),
        ("any storage will do", "        if works(file, other):\n", "        if True:\n"),
        ("unfit for want of room", "error.errno in (errno.ENOSPC, errno.EDQUOT)", "False"),
        ("files of the trial stay", "            _remove(file, other)\n", ""),
        ("its folders stay", "            remove_empty(made)\n", ""),
        ("any disk is a bucket", "== [number] and kind", "and kind"),
        ("a disk of such a name is a bucket", ' and kind.startswith("fuse")', ""),
        (
            "a file twice",
            "    except FileExistsError:\n        return True\n    return False\n",
            "    except FileExistsError:\n        return True\n    return True\n",
        ),
        ("a file without a time", " and found.st_mtime_ns > 0", ""),
        ("renaming to nowhere", 'return read_now(file) == b"third" and ', "return "),
    ),
    *faults(
        "labelling/journal.py",
        "labelling_lock",
        ("a lost run's journal is cut", "classes, check\n        check()\n", "classes, check\n"),
        ("lines of a lost run", "        self._check()\n        try:\n", "        try:\n"),
        (
            "syncs of a lost run",
            "        self._check()\n        with output_errors",
            "        with output_errors",
        ),
    ),
    *faults(
        "labelling/run.py",
        "labelling_lock",
        ("the manifest of a lost run", "                lock.check()\n", ""),
        ("a lost run begins", "            lock.check()  # loading takes long\n", ""),
        ("the journal isn't told", ", run.class_names, lock.check)", ", run.class_names)"),
    ),
    *faults(
        "labelling/manifest.py",
        "labelling_lock",
        ("what a taker has left stays", "for name in (OWNER, *names)}", "for name in names}"),
    ),
    *faults(
        "labelling/summary.py",
        "labelling_lock",
        ("an exporter over the owner file", "(MANIFEST, LOCK, OWNER, j", "(MANIFEST, LOCK, j"),
    ),
    *faults(
        "labelling/decode_worker.py",
        "labelling_decode_worker",
        (
            "the decode worker's timer removed",
            "signal.setitimer(signal.ITIMER_REAL, timeout)  # its signal",
            "pass  # its signal",
        ),
        (
            "the timer runs on",
            "        signal.setitimer(signal.ITIMER_REAL, 0)\n        answers.write(json",
            "        answers.write(json",
        ),
        ("images of any size", "load_image(data, max_pixels=max_pixels)", "load_image(data)"),
    ),
    *faults(
        "labelling/failures.py",
        "labelling_flow labelling_segment tune",
        ("a model may fail forever", "MODEL_FAILURES = 3", "MODEL_FAILURES = 3000"),
    ),
]

FILES = [
    *faults(
        "data/files.py",
        "files sources",
        ("a file's bytes are not synced", "                os.fsync(file.fileno())\n", ""),
        ("a folder's entry is not synced", "        sync_folder(target.parent)\n", ""),
        (
            "a file is renamed before it is whole",
            "                yield file\n",
            "                os.replace(beside, target)\n                yield file\n",
        ),
        ("a failed file stays beside", "            beside.unlink(missing_ok=True)\n", ""),
        ("NaN is written as JSON", "allow_nan=False", "allow_nan=True"),
    ),
    *faults(
        "data/sources.py",
        "sources",
        ("links lead out", "if not _lies_in(path, os.path.realpath(root)):", "if not path:"),
        ("names sorted by characters", "sorted(set(keys), key=os.fsencode)", "sorted(set(keys))"),
        (
            "outputs among inputs",
            "if _lies_in(target, folder) and not free:",
            "if target == searched and not free:",
        ),
    ),
]

VIEWS = [
    *faults(
        "analysis/objects.py",
        "explain",
        ("left out first", "(empty[k], not kept[k], share[k] < least, -score[k])", "-empty[k]"),
        ("worst object first", "share[k] < least, -score[k])", "share[k] < least, score[k])"),
        ("duplicates are shown", "if not kept[k]:", "if False:"),
        ("weak masks are shown", "if share[k] < least", "if False"),
        (
            "score not beside the best",
            "alone * shares_of_best(contrast, label_index, kept)",
            "alone",
        ),
        ("candidates of another object", "masks, order[chosen])", "masks, chosen)"),
    ),
    *faults(
        "analysis/bench.py",
        "explorer",
        ("negative points of one object", "[one[None], negative]", "[one[None]]"),
        ("one object for all points", "each_object=each)", "each_object=False)"),
    ),
    *faults(
        "analysis/session.py",
        "session explorer",
        ("points of left out masks hidden", "not in known]", "in known]"),
        ("accepted twice", "record.image_id) != place]", "record.image_id) is None]"),
        ("presence of another label", "presence[number],)", "presence[0],)"),
        ("clicks go with their image", "setdefault(index, bench", "setdefault(0, bench"),
    ),
    *faults(
        "analysis/explorer.py",
        "explorer",
        ("slider does not follow", "positive_from  # other", "point_threshold or 0.5  # other"),
    ),
    *faults(
        "tiny/demo.py",
        "tiny",
        ("a mask finds two objects", "ious[mask], ious[:, item] = -1, -1", "ious[:, item] = -1"),
        ("two masks on one object", "ious[mask], ious[:, item] = -1, -1", "ious[mask] = -1"),
    ),
    *faults(
        "data/labels.py",
        "visualize",
        ("single masks are numbered", "if counts[name] > 1 else", "if counts[name] else"),
    ),
]

WHOLE = [
    *faults(
        "recognition.py",
        "recognition",
        ("scores without surgery", "(terms.similarity - terms.redundant)", "terms.similarity"),
        ("distractors don't compete", "encode_labels(parts)", "encode_labels(parts)[:2]"),
        ("logit scale not raised", "clip.model.logit_scale.exp()", "clip.model.logit_scale"),
        ("alone against nothing", "if cosines.shape[1] == 1:", "if False:"),
    ),
    *faults(
        "dense.py",
        "dense",
        ("the whole image is averaged, too", "views[1:] or views", "views"),
        ("windows are summed", "return total / count", "return total"),
        ("a band of all rows", "max(DENSE_SCORES // (labels * width), 1)", "height"),
        ("pixels of distractors", "math.inf if c.distractor", "-math.inf if c.distractor"),
        ("maps bleed over masks", "    kept[own] = 0\n", ""),
        ("masks need what pixels need", "REGION_SHARE * limits", "limits"),
    ),
    *faults(
        "analysis/dense.py",
        "dense",
        (
            "union of the truth alone",
            "counts.sum(axis=0) + counts.sum(axis=1) - right",
            "counts.sum(axis=1)",
        ),
        ("the largest object is the truth", "key=lambda one: -int", "key=lambda one: int"),
    ),
]

REVIEW = [
    *faults(
        "review/rows.py",
        "report",
        ("all masks are kept", "int(id(a) in kept)", "1"),
        ("points as they were", "[round(x * scale), round(y * scale), kind]", "[x, y, kind]"),
        ("scaled by the height", "UNITS / max(*record.size, 1)", "UNITS / max(record.size[0], 1)"),
        ("an outline of nothing", "if area_and_box(annotation.rle)[0] == 0:", "if False:"),
        ("nothing is waiting", "listed - recorded", "0 * recorded"),
        ("prompts are names", "[p for part in one.parts for p in part.prompts]", "[one.name]"),
    ),
    *faults(
        "review/pictures.py",
        "report",
        ("a changed image is shown", "if image.size != record.size:", "if False:"),
        ("an object is read again", "if source is None:", "if False:"),
    ),
    *faults(
        "review/page.py",
        "report",
        ("output among the images", "    content.check_output(target)\n", ""),
        ("a stranger's page is replaced", "    _check_free(target)\n", ""),
        ("a tag in a script", '.replace("<", "\\\\u003c")', ""),
        ("names beyond ASCII", "json.dumps(value, ", "json.dumps(value, ensure_ascii=False, "),
        ("failed images are decoded", 'if record.state == "failed":  # not', "if False:  # not"),
        ("details under a later number", '"details", done // DETAILS', '"details", done'),
        ("the last overview is lost", "    if overview:\n", "    if False:\n"),
        ("all records at once", "islice(jobs, DETAILS)", "islice(jobs, None)"),
        ("pictures from one on", "number += len(chunk)", "number += len(chunk) + 1"),
        (
            "leftovers of a killed process stay",
            "            shutil.rmtree(left)\n",
            "            pass\n",
        ),
    ),
]

FAULTS = [*METHOD, *POINTS, *SAM, *COCO, *EXPORT, *JOURNAL, *FILES, *VIEWS, *WHOLE, *REVIEW]
