"""A process that labels until it is killed: python labelling_worker.py IN OUT TRACE DELAY...

For each delay it starts a child that labels IN into OUT and kills it (SIGKILL) that many seconds after the child's run
has begun; at last a child runs to its end. All that is slow to load is loaded once, before the first child. Each
child writes a line to TRACE: how many pictures its model was given.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from clip2sam.labelling import decoder, publish, run  # noqa: F401
from tests.labelling_fakes import small_segmenter

BATCH = 4
LABELS = ["cat", "dog"]


def label_in_a_child(segmenter, pictures, output, trace):
    """Fork; the child labels, writing a byte to the trace for each picture that its model is given."""
    ready, started = os.pipe()
    child = os.fork()
    if child:
        os.close(started)
        os.read(ready, 1)
        os.close(ready)
        return child
    log = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    real = segmenter.predict_batch

    def predict_batch(images, labels, **settings):
        os.write(log, b"." * len(images))
        return real(images, labels, **settings)

    segmenter.predict_batch = predict_batch
    try:
        run.label(
            pictures, LABELS, output, segmenter=segmenter, batch_size=BATCH, on_start=lambda *_: os.write(started, b"!")
        )
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main():
    pictures, output, trace, *delays = sys.argv[1:]
    torch.set_num_threads(1)  # threads would not survive the fork
    segmenter = small_segmenter()
    for delay in map(float, delays):
        child = label_in_a_child(segmenter, pictures, output, trace)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(trace, "ab") as file:
            file.write(b"\n")
    child = label_in_a_child(segmenter, pictures, output, trace)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
