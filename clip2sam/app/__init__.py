"""An app to try and correct, in a browser, with Gradio: `clip2sam app`.

    canvas      one image in hand: its masks, clicks, boxes, edits, and the way back
    trial       a canvas whose masks are computed as labels and settings move
    correction  a canvas whose masks are those of a run
    rounds      a run's images in the order of doubt, and what is decided about them
    drawing     pictures of all that
    words       what is said, as HTML that nothing typed can break
    page        the widgets
    guard       what the server lets through
    serving     the server's start and end

Only `page`, `guard` and `serving` know Gradio; everything else is tested without a browser.
"""
