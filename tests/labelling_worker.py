"""A process that labels until it is killed: python labelling_worker.py IN OUT TRACE MOMENT...

A moment is N:SECONDS, such as 3:0.01: a child labels IN into OUT and is killed (SIGKILL) so many
seconds after its model was given N images (or has ended by itself before); with N = 0, after its
run has begun. At last a child runs to its end. All that is slow to import is imported once, before
the first child. TRACE gets a line a child, with a dot for each image that its model was given.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from clip2sam.labelling.run import label_dataset
from clip2sam.visualize import histogram  # noqa: F401
from tests.labelling_fakes import small_segmenter

BATCH = 4
LABELS = ["cat", "dog"]


def label_in_a_child(segmenter, images, output):
    """Fork; the child writes a byte when its run begins, and one for each image that its model is
    given."""
    seen, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, seen
    os.close(seen)
    real = segmenter.encode

    def encode(batch, **settings):
        os.write(tell, b"." * len(batch))
        return real(batch, **settings)

    segmenter.encode = encode
    try:
        begun = lambda *_: os.write(tell, b"!")  # noqa: E731
        label_dataset(
            images,
            LABELS,
            output,
            segmenter=segmenter,
            batch_size=BATCH,
            readers=1,
            on_start=begun,
        )
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def read_all(seen, least):
    """Bytes from the child: at least so many, or all if it ends before."""
    data = b""
    while len(data) < least and (more := os.read(seen, 1000)):
        data += more
    return data


def main():
    images, output, trace, *moments = sys.argv[1:]
    torch.set_num_threads(1)  # threads would not survive the fork
    segmenter = small_segmenter()
    with open(trace, "w") as log:
        for number, seconds in (moment.split(":") for moment in moments):
            child, seen = label_in_a_child(segmenter, images, output)
            told = read_all(seen, int(number) + 1)
            time.sleep(float(seconds))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told += read_all(seen, 10**9)
            os.close(seen)
            log.write("." * told.count(b".") + "\n")
        child, seen = label_in_a_child(segmenter, images, output)
        log.write("." * read_all(seen, 10**9).count(b".") + "\n")
        _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
