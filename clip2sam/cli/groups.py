"""Options that go together: the same ones in every command, and what they give together."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.text import Text

from clip2sam.cli import options
from clip2sam.cli.console import err
from clip2sam.cli.presets import check_known, chosen_preset
from clip2sam.config import Config, checked_resolution, published
from clip2sam.data.images import printable
from clip2sam.data.labels import LabelSet, as_label_set
from clip2sam.data.opening import kind_given, open_source
from clip2sam.data.sources import Source
from clip2sam.data.urls import find_images, without_own
from clip2sam.errors import ConfigError, LabelError, WeightsError
from clip2sam.models.devices import check_device, check_precision
from clip2sam.models.locators import checked_method, settings_for

if TYPE_CHECKING:
    from clip2sam.data.labels import LabelClass
    from clip2sam.pipeline import Segmenter


@dataclass(frozen=True)
class LabelOptions:
    """What is looked for."""

    label: options.Label = None
    labels: options.Labels = None
    distractor: options.Distractor = None
    allow_unknown: options.AllowUnknown = False

    def given(self) -> list[str] | Path | None:
        """The labels of `--label` or of `--labels`; None if none of the two options is given.

        Raises:
            LabelError: both are, or the file isn't there.
        """
        if self.label and self.labels is not None:
            raise LabelError(
                "give labels by --label NAME (repeatable) or by --labels FILE: one of the two"
            )
        if self.labels is not None and not self.labels.exists():
            raise LabelError(
                f"{self.labels}: expected a labels file, found nothing there; check the path, or "
                f"give names by --label: --label {str(self.labels)!r}"
            )
        return self.labels or self.label or None

    def label_set(self, caption: str | None = None) -> LabelSet:
        """The labels, checked.

        Args:
            caption: of `--caption`, which may stand in their place.

        Raises:
            LabelError: not one of the three options is given, or several are; the caption names
                nothing; or what `as_label_set` refuses.
        """
        given: list[str] | Path | LabelSet | None = self.given()
        if caption is not None and given is None:
            from clip2sam.data.captions import labels_of_caption

            given = labels_of_caption(caption)
        elif given is None or caption is not None:
            raise LabelError(
                "give labels by --label NAME (repeatable), by --labels FILE or by --caption "
                "SENTENCE: one of the three"
            )
        return as_label_set(given, distractors=self.distractor or ())


@dataclass(frozen=True)
class MapOptions:
    """Settings of how labels are found."""

    published: options.Published = False
    no_feature_surgery: options.PlainSimilarity = False
    presence_threshold: options.PresenceThreshold = None
    tile: options.Tile = None
    tile_overlap: options.TileOverlap = None


@dataclass(frozen=True)
class MaskOptions:
    """Settings of how a label that was found becomes masks."""

    point_threshold: options.PointThreshold = None
    grid: options.Grid = None
    one_mask: options.OneMask = False
    max_objects: options.MaxObjects = None
    min_share: options.MinShare = None


@dataclass(frozen=True)
class ModelOptions:
    """The models, and where they compute."""

    preset: options.Preset = None
    clip: options.Clip = None
    resolution: options.Resolution = None
    device: options.Device = "auto"
    precision: options.Precision = "fp32"
    clip_checkpoint: options.ClipCheckpoint = None
    sam_checkpoint: options.SamCheckpoint = None
    sha256: options.Sha256 = None
    weights_dir: options.WeightsDir = None
    offline: options.Offline = False

    def chosen(self, *, method: str | None = None, run: Path | None = None) -> "ModelOptions":
        """The same with a preset, see `chosen_preset`, and the CLIP's name in open_clip's
        spelling. All is checked that needs no PyTorch: a mistake is told at once.

        Raises:
            ConfigError: an unknown preset, device, precision or method, a resolution that can't be,
                or a CLIP's name of another form, or without a preset for its SAM.
            WeightsError: a checkpoint that isn't there.
        """
        from clip2sam.models.clips import split_clip_name
        from clip2sam.models.presets import get_preset

        if self.preset is not None:
            get_preset(self.preset)
        clip = None if self.clip is None else ":".join(split_clip_name(self.clip))
        if method is not None:
            checked_method(method)
        check_device(self.device)
        check_precision(self.precision)
        if self.resolution is not None:
            checked_resolution(self.resolution)
        for name in ("clip_checkpoint", "sam_checkpoint"):
            path = getattr(self, name)
            if path is not None and not path.exists():
                option = f"--{name.replace('_', '-')}"
                raise WeightsError(f"{path}: no such file; check the path of {option}")
        preset = chosen_preset(self.preset, weights_dir=self.weights_dir, run=run)
        if self.clip is not None and self.preset is None and preset == "tiny":
            raise ConfigError(
                "--clip takes the place of a preset's CLIP, and its SAM stays, but no weights for "
                "photographs are here; name the preset too: --preset vit-b, vit-l or vit-h"
            )
        return replace(self, preset=preset, clip=clip)

    def anywhere(self) -> "ModelOptions":
        """The same, for a process that works in another folder."""

        def absolute(path: Path | None) -> Path | None:
            return path and path.absolute()

        return replace(
            self,
            clip_checkpoint=absolute(self.clip_checkpoint),
            sam_checkpoint=absolute(self.sam_checkpoint),
            weights_dir=absolute(self.weights_dir),
        )

    def on_own_gpu(self) -> "ModelOptions":
        """The same on the GPU that torchrun gives this process (LOCAL_RANK), where it is left to
        us and there are several."""
        import torch

        rank = os.environ.get("LOCAL_RANK", "")
        if self.device != "auto" or not rank.isdecimal() or torch.cuda.device_count() < 2:
            return self
        return replace(self, device=f"cuda:{int(rank) % torch.cuda.device_count()}")

    @property
    def name(self) -> str:
        """What a run's files call the models."""
        preset = self.preset or "tiny"
        return preset if self.clip is None else f"{preset} with {self.clip}"

    def check_known(
        self,
        classes: "Sequence[LabelClass]",
        labels: LabelOptions,
        *,
        method: str | None = None,
    ) -> tuple[str, ...]:
        """Refuse labels that the preset doesn't know, see `clip2sam.cli.presets.check_known`.

        Returns:
            Their names.

        Raises:
            LabelError: there are such labels.
        """
        return check_known(self.name, classes, method=method, allow=labels.allow_unknown)

    def config(
        self,
        maps: MapOptions | None = None,
        masks: MaskOptions | None = None,
        *,
        method: str | None = None,
    ) -> Config:
        """The preset's settings, or with `published` those of the published demo, with the options
        that are given in their place.

        Raises:
            ConfigError: an unknown method, or a value out of range.
        """
        from clip2sam.models.clips import settings_of
        from clip2sam.models.presets import get_preset

        maps, masks = maps or MapOptions(), masks or MaskOptions()
        preset = get_preset(self.preset or "tiny")
        own = preset.config if self.clip is None else settings_of(preset)
        base = published() if maps.published else own
        if method is not None:
            base = settings_for(checked_method(method), base)
        tile = maps.tile
        changes: dict[str, Any] = {
            "feature_surgery": False if maps.no_feature_surgery else None,
            "presence_threshold": maps.presence_threshold,
            "point_threshold": masks.point_threshold,
            "grid": masks.grid,
            "prompts": "label" if masks.one_mask else None,
            "max_objects": masks.max_objects,
            "min_share": masks.min_share,
            "tile": int(tile) if tile is not None and tile.isdecimal() else tile,
            "tile_overlap": maps.tile_overlap,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(base, **given)

    def load(
        self, config: Config, *, method: str | None = None, compiled: bool = False
    ) -> "Segmenter":
        """The models, with these settings. Everything else should be checked before.

        Raises:
            ConfigError, WeightsError: as `clip2sam.models.loading.load`.
        """
        if self.device.startswith("mps"):
            # read when PyTorch is imported: what MPS can't do yet, the CPU does
            os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
        from clip2sam.models.loading import load

        return load(
            self.preset,
            clip=self.clip,
            config=config,
            method=method,
            device=self.device,
            precision=self.precision,
            compiled=compiled,
            resolution=self.resolution,
            clip_checkpoint=self.clip_checkpoint,
            sam_checkpoint=self.sam_checkpoint,
            sha256=self.sha256 or (),
            weights_dir=self.weights_dir,
            offline=self.offline,
        )


def listed(images: list[str], *, offline: bool = False) -> Source:
    """The images of a source, without what clip2sam has drawn, which is said. On a terminal
    something moves meanwhile: a large folder on a slow disk takes minutes.

    Raises:
        ImageError: as `find_images`, `without_own` and `open_source`.
    """
    with err.status("listing images"):
        if kind_given(images) != "files":
            return open_source(images)
        source, drawn = without_own(find_images(images, offline=offline))
    for folder, count in drawn.items():
        err.print(Text(f"left out {count} images in {printable(folder)}: clip2sam has drawn them"))
    return source


Command = TypeVar("Command", bound=Callable[..., None])


def spread(command: Command) -> Command:
    """For typer: a command that takes records of options takes these options themselves, in the
    records' place."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    records: dict[str, Any] = {p.name: p.annotation for p in own if is_dataclass(p.annotation)}
    taken = []
    for parameter in own:
        if parameter.name in records:
            taken += [
                inspect.Parameter(
                    f.name, parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
                )
                for f in fields(records[parameter.name])
            ]
        else:
            taken.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

    @wraps(command)
    def with_records(**given: Any) -> None:
        made = {
            name: record(**{f.name: given.pop(f.name) for f in fields(record)})
            for name, record in records.items()
        }
        command(**given, **made)

    with_records.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    with_records.__annotations__ = {p.name: p.annotation for p in taken}
    return with_records  # type: ignore[return-value]
