"""Text in XML files, as Pascal VOC and CVAT have them."""

import re
from xml.sax.saxutils import escape

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_REFERENCES = {'"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
"""Readers make spaces of line breaks in attributes, and of every \\r a \\n."""


def xml_text(text: str) -> str:
    """A text for an element, or for an attribute between double quotes.

    Characters that XML can't hold become Python's escapes: `\\x07` stands for the bell, `\\udcff`
    for the byte FF of a file name that is not UTF-8.
    """
    return escape(_NO_XML.sub(lambda found: ascii(found[0])[1:-1], text), _REFERENCES)
