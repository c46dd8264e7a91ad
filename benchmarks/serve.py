"""The server under load: 32 clients, 2,000 small requests, none of them lost, memory flat.

    python benchmarks/serve.py [--requests 2000] [--clients 32] [--output FILE.json]

`clip2sam serve --preset tiny` as a process of its own, on a free port. First every one of 50 drawn
images is asked for alone; these answers are the reference. Then the clients ask at the same time,
each for one image after another. A 503 is waited for as long as it says, and asked again. An answer
that differs from the reference by a byte is wrong, a request without an answer is lost. The server
takes fewer requests at the same time than there are clients, so that there are 503s.

Memory is that of the server and its decode workers (RSS); its slope is that of a line through the
second half. Latency is that of the try that was answered; the whole has the waiting too.
"""

import argparse
import asyncio
import io
import json
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from about import about
from PIL import Image as PILImage

from clip2sam.tiny.scenes import scene, split_seed

IMAGES = 50
LABELS = ["red circle", "heart", "star", "blue thing", "striped square"]
HEADERS = {"content-type": "image/png"}


def drawn(i: int) -> bytes:
    """A scene of 224 pixels as PNG."""
    data = io.BytesIO()
    PILImage.fromarray(scene(split_seed("validation", i), 224).pixels).save(data, "PNG")
    return data.getvalue()


@dataclass
class Load:
    """What came of it."""

    statuses: Counter[int] = field(default_factory=Counter)
    latency: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    wrong: int = 0
    memory: list[float] = field(default_factory=list)
    """MB, after every so many answers."""


def memory_mb(process: psutil.Process) -> float:
    """RSS of a process and its children."""
    every = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in every) / 1e6


async def ask(client: httpx.AsyncClient, data: bytes) -> httpx.Response:
    """One try."""
    return await client.post("/v1/segment", params={"label": LABELS}, content=data, headers=HEADERS)


async def answered(client: httpx.AsyncClient, data: bytes, load: Load) -> bytes:
    """An answer, however often it takes."""
    began = time.perf_counter()
    while True:
        tried = time.perf_counter()
        response = await ask(client, data)
        load.statuses[response.status_code] += 1
        if response.status_code != 503:
            break
        await asyncio.sleep(float(response.headers["retry-after"]))
    load.latency.append(time.perf_counter() - tried)
    load.whole.append(time.perf_counter() - began)
    return response.content


async def under_load(
    address: str, process: psutil.Process, requests: int, clients: int
) -> tuple[Load, float, float]:
    """The load, the seconds that it took, and MB before it."""
    images = [drawn(i) for i in range(IMAGES)]
    load = Load()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        while not await ready(client):
            await asyncio.sleep(0.1)
        alone = [(await ask(client, data)).content for data in images]
        before, rest = memory_mb(process), iter(range(requests))

        async def one_client() -> None:
            for i in rest:
                content = await answered(client, images[i % IMAGES], load)
                load.wrong += content != alone[i % IMAGES]
                if len(load.whole) % max(requests // 40, 1) == 0:
                    load.memory.append(memory_mb(process))

        began = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(clients)))
        seconds = time.perf_counter() - began
        figures = (await client.get("/metrics")).text
    for name in ("clip2sam_batch_size_count", "clip2sam_batch_size_sum"):
        print(next(line for line in figures.splitlines() if line.startswith(name)), flush=True)
    return load, seconds, before


async def ready(client: httpx.AsyncClient) -> bool:
    """Whether the server listens and has its model."""
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx.ConnectError:
        return False


def started(max_waiting: int) -> tuple[subprocess.Popen[str], str]:
    """The server's process and address."""
    options = ("--preset", "tiny", "--port", "0", "--max-waiting", str(max_waiting))
    process = subprocess.Popen(
        [sys.executable, "-m", "clip2sam.cli", "serve", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    return process, line.split(" at ")[1].split(",")[0]


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and the ends."""
    return {
        "median": round(statistics.median(values), 3),
        "p95": round(float(np.percentile(values, 95)), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def report(load: Load, seconds: float, before: float, requests: int) -> dict[str, Any]:
    """The figures."""
    half = load.memory[len(load.memory) // 2 :]
    step = requests / max(len(load.memory), 1)
    slope = float(np.polyfit(np.arange(len(half)) * step, half, 1)[0])
    return {
        "requests": requests,
        "answered with 200": load.statuses[200],
        "lost": requests - load.statuses[200],
        "not as alone": load.wrong,
        "503, tried again": load.statuses[503],
        "other": {str(k): n for k, n in load.statuses.items() if k not in (200, 503)},
        "images/s": round(load.statuses[200] / seconds, 2),
        "latency, s": spread(load.latency),
        "with waiting for a retry, s": spread(load.whole),
        "MB before": round(before, 1),
        "MB after": round(load.memory[-1], 1),
        "MB most": round(max(load.memory), 1),
        "MB slope, per 1000 requests": round(1000 * slope, 2),
    }


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max-waiting", type=int, default=24)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    found = about()
    print(json.dumps(found), flush=True)
    process, address = started(given.max_waiting)
    try:
        measured = under_load(address, psutil.Process(process.pid), given.requests, given.clients)
        row = {"clients": given.clients, "max waiting": given.max_waiting}
        row |= report(*asyncio.run(measured), given.requests)
        process.send_signal(signal.SIGTERM)
        row["exit code"] = process.wait(60)
    finally:
        process.kill()
    print(json.dumps(row), flush=True)
    if given.output:
        given.output.write_text(json.dumps({**found, "rows": [row]}, indent=1))


if __name__ == "__main__":
    main()
