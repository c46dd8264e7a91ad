"""The options of `label` for Ray, and what they do."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from clip2sam.cli.options import text_option
from clip2sam.data.labels import LabelSet
from clip2sam.errors import ConfigError

if TYPE_CHECKING:
    from clip2sam.cli.progress import Display
    from clip2sam.labelling.summary import Summary
    from clip2sam.pipeline import Segmenter

PANEL = "Many machines"
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class RayOptions:
    """Where images are labelled."""

    engine: Annotated[
        str,
        text_option("local: in this process; ray: by the workers of a Ray cluster.", "NAME", PANEL),
    ] = "local"
    workers: Annotated[
        str | None,
        text_option(
            "With --engine ray; auto: one a GPU, else one a processor. Without: as --readers.",
            "N|auto",
            PANEL,
        ),
    ] = None
    address: Annotated[
        str | None,
        text_option(
            "Of the Ray cluster; auto: this machine's. Else Ray is started here.",
            "HOST:PORT",
            PANEL,
        ),
    ] = None

    @property
    def is_asked(self) -> bool:
        """Whether Ray is."""
        return self.engine == "ray"

    def readers(self, readers: int | None, shard: str | None = None) -> int | None:
        """The processes that decode images, in each process that labels.

        Args:
            readers, shard: the values of --readers and --shard.

        Raises:
            ConfigError: an option that only Ray has is given without it, or a wrong value.
        """
        if self.engine not in ENGINES:
            raise ConfigError(f"--engine must be local or ray, but got {self.engine!r}")
        if self.is_asked and shard is not None:
            raise ConfigError("--engine ray labels all shards; leave out --shard, or the engine")
        if self.is_asked:
            return readers
        if self.address is not None:
            raise ConfigError("--address is for --engine ray; leave it out, or add --engine ray")
        if self.workers is None:
            return readers
        if readers is not None:
            raise ConfigError("without --engine ray, --workers is --readers; give one of the two")
        if not self.workers.isdecimal():
            raise ConfigError(
                f"without --engine ray, --workers is the number of --readers, but got "
                f"{self.workers!r}"
            )
        return int(self.workers)


def label_by_ray(
    options: RayOptions,
    source: str,
    labels: LabelSet,
    output: Path,
    load_models: "Callable[[], Segmenter]",
    display: "Display",
    settings: dict[str, Any],
) -> "Summary":
    """Label with Ray's workers, and publish.

    Args:
        load_models: goes to the workers, pickled.
        settings: arguments of `label_with_ray`.
    """
    from clip2sam.cluster.driver import Progress, label_with_ray
    from clip2sam.labelling.content import begun_run

    def show(now: Progress) -> None:
        display.counts(now.listed, now.todo, now.images, now.failed, now.reasons)

    workers: Any = options.workers or "auto"
    with redirect_stdout(sys.stderr):  # Ray says on standard output that something has died
        summary = label_with_ray(
            source,
            labels,
            output,
            segmenter=load_models,
            workers=int(workers) if workers.isdecimal() else workers,
            address=options.address,
            on_progress=show,
            **settings,
        )
    shard = begun_run(output)
    assert shard is not None  # all have
    display.set_run(shard)
    return summary
