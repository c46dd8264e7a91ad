"""What the app says, as HTML. Every text is escaped: labels and names may be anything."""

from collections.abc import Sequence
from html import escape

from clip2sam.app.canvas import Canvas
from clip2sam.app.rounds import Round
from clip2sam.app.trial import Why
from clip2sam.data.images import printable
from clip2sam.data.labels import numbers
from clip2sam.data.palette import colour


def said(text: str, *, wrong: bool = False) -> str:
    """A line that says what happened."""
    kind = "wrong" if wrong else "fine"
    return f'<p role="status" class="said {kind}">{escape(text)}</p>' if text else ""


def why_table(rows: Sequence[Why], names: Sequence[str]) -> str:
    """A row for each label: whether it is there, and why."""
    head = ("label", "masks", "highest score", "threshold", "points", "why")
    body = "".join(
        "<tr>"
        f"<th scope='row'>{_swatch(names.index(row.label))}{escape(row.label)}</th>"
        f"<td>{row.masks}</td><td>{row.presence:.3f}</td>"
        f"<td>{'none' if row.threshold is None else f'{row.threshold:.3g}'}</td>"
        f"<td>{row.points}</td><td>{escape(row.says)}</td></tr>"
        for row in rows
    )
    titles = "".join(f"<th scope='col'>{title}</th>" for title in head)
    return f'<table class="why"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'


def mask_names(canvas: Canvas) -> list[str]:
    """What the list of masks calls each of them: with its place, which tags show where masks are
    many."""
    masks = canvas.annotations()
    which = numbers([one.label for one in masks])
    pairs = zip(masks, which, strict=True)
    return [
        f"{place}: {f'{one.label} {number}'.rstrip()}, score {one.score:.2f}"
        for place, (one, number) in enumerate(pairs, 1)
    ]


def place_of(way: Round) -> str:
    """Where a person is in a run, and what was decided about this image."""
    if not 0 <= way.at < way.count:
        return said(way.trouble)
    record, left = way.record, way.reviewed.left
    verdict = "not decided yet" if record.review is None else record.review.verdict
    return (
        f'<p class="place"><b>{escape(printable(record.file_name))}</b> &middot; '
        f"{way.at + 1} of {way.count} in the order of doubt &middot; {left} left &middot; "
        f"<b>{verdict}</b></p>" + said(way.trouble, wrong=True)
    )


def _swatch(index: int) -> str:
    red, green, blue = (round(255 * part) for part in colour(index))
    return f'<span class="swatch" style="background: rgb({red} {green} {blue})"></span>'
