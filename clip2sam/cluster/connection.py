"""Starting Ray on this machine, or joining a cluster; and how many workers it has room for."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from clip2sam.config import whole_number
from clip2sam.errors import ConfigError, RunError, one_line, shown

Workers = int | Literal["auto"]

STORE = 80 * 2**20
"""Bytes of the object store of a Ray that is started here; about the least that Ray takes. Nothing
of a run lies in it."""


@dataclass(frozen=True)
class Room:
    """The workers that a run gets."""

    workers: int
    gpu: bool
    """Whether each has a GPU; else each has a processor."""
    threads: int
    """PyTorch's, in each."""

    @property
    def needs(self) -> dict[str, int]:
        """What one worker takes of its node, in Ray's words."""
        # Beside its GPU it asks for no processor: else a GPU could stay idle for lack of one.
        return {"num_cpus": 0, "num_gpus": 1} if self.gpu else {"num_cpus": 1, "num_gpus": 0}


def check_installed() -> None:
    """Refuse to begin without Ray.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("ray") is None:
        raise ConfigError(
            "the engine ray needs the package ray: pip install 'clip2sam[ray]', on every machine "
            "of the cluster"
        )


def checked_workers(workers: Any) -> Workers:
    """The number of workers that is asked for.

    Raises:
        ConfigError: it is none.
    """
    if workers == "auto":
        return "auto"
    if isinstance(workers, str):
        raise ConfigError(f"workers must be a whole number or auto, but got {shown(workers)}")
    return whole_number("workers", workers, 1, 100_000, "workers")


def check_address(address: str | None) -> None:
    """Refuse Ray's client, whose program runs outside of the cluster.

    Raises:
        ConfigError: it is asked for.
    """
    if address is not None and address.startswith("ray://"):
        raise ConfigError(
            f"{shown(address)} is Ray's client, whose program may not see the run's folder; start "
            "the command on a machine of the cluster with the address auto, or by ray job submit"
        )


def check_travels(models: object) -> None:
    """Refuse what can't be brought to another machine.

    Raises:
        ConfigError: it can't be pickled.
    """
    from ray import cloudpickle

    try:
        cloudpickle.dumps(models)
    except Exception as error:  # whatever an object's own code raises
        raise ConfigError(
            f"the function that loads the models can't be pickled ({one_line(error)}); give a "
            "preset, or a function of a module, as in functools.partial(clip2sam.load, 'vit-h')"
        ) from error


@contextmanager
def connected(address: str | None, workers: Workers) -> Iterator[Room]:
    """Be connected to Ray. One that this process is connected to already is used, and stays.

    Args:
        address: of the cluster; "auto": the one that this machine belongs to; None: what the
            environment variable RAY_ADDRESS says, else a Ray of its own is started here.
        workers: so many; "auto": one for each GPU of the cluster, or, if it has none, one for each
            processor.

    Raises:
        RunError: there is no cluster at the address, or it has room for no worker.
    """
    import ray

    own = not ray.is_initialized()
    if own:
        _connect(address or os.environ.get("RAY_ADDRESS") or "local", workers)
    try:
        yield _room(ray.cluster_resources(), workers)
    finally:
        if own:
            ray.shutdown()


def _connect(address: str, workers: Workers) -> None:
    import ray

    here: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here = {"include_dashboard": False, "object_store_memory": STORE}
        if workers != "auto":
            here["num_cpus"] = max(workers, os.cpu_count() or 1)
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **here)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if address == "local" else f"at {shown(address)}"
        raise RunError(
            f"Ray can't be started or reached {where} ({one_line(error)}); see 'ray status', or "
            "leave out --address (address=None) to start one here"
        ) from error


def _room(has: dict[str, float], workers: Workers) -> Room:
    gpus, processors = int(has.get("GPU", 0)), int(has.get("CPU", 0))
    count = (gpus or processors) if workers == "auto" else workers
    if not count:
        raise RunError(
            "the Ray cluster has neither a GPU nor a processor to give; start its nodes with "
            "--num-cpus or --num-gpus, or say how many workers will come, as with --workers 8"
        )
    threads = min(max(processors // gpus, 1), 8) if gpus else 1
    return Room(count, gpus > 0, threads)
