"""The order of doubt: which images a person should look at first. `data.js` has the same for the
page."""

import math
from collections.abc import Sequence

from clip2sam.data.records import Annotation, ImageRecord


def certainty(
    record: ImageRecord, kept: Sequence[Annotation], thresholds: Sequence[float | None]
) -> float:
    """How near the nearest decision about an image was: the distance of a class's presence score
    from its threshold, as a share of the threshold; 0 is at the threshold. Without thresholds, the
    lowest score of a mask. Infinite for what has neither: it comes last.

    Args:
        record: as the model left it.
        kept: those of its annotations that the run itself keeps.
        thresholds: of each class; None: nothing is decided by its score.
    """
    if record.state == "failed":
        return math.inf
    scores = zip(record.presence, record.beaten, thresholds, strict=True)
    distances = [
        abs(score - threshold) / max(abs(threshold), 1e-9)
        for score, beaten, threshold in scores
        if score is not None and threshold is not None and not beaten
    ]
    return min(distances) if distances else min((a.score for a in kept), default=math.inf)
