"""The colours of classes: the same in figures, in the explorer and in exported PNG files."""

RGB = tuple[float, float, float]
"""Red, green and blue, each 0 to 1."""

# Okabe and Ito's colours without orange and blue, which are kept for points; then dark red, violet
# and aqua. With normal sight, protanopia, deuteranopia and tritanopia (Machado et al. 2009) any two
# are at least 15 apart in CIELAB.
_PALETTE = ("#009E73", "#F0E442", "#D55E00", "#CC79A7", "#56B4E9", "#7A0019", "#8400CD", "#00FCCF")


def colour(index: int) -> RGB:
    """The colour of a class, by its index in the user's list: the same in every image.

    Colour-blind people can tell the first eight apart, and the lighter eight and the darker eight
    that follow among themselves; then the colours repeat. For that reason names are written next
    to masks.
    """
    cycle, place = divmod(index, len(_PALETTE))
    red, green, blue = (int(_PALETTE[place][i : i + 2], 16) / 255 for i in (1, 3, 5))
    towards, share = ((0.0, 0.0), (1.0, 0.5), (0.0, 0.4))[cycle % 3]  # as is, lighter, darker
    return (
        red + (towards - red) * share,
        green + (towards - green) * share,
        blue + (towards - blue) * share,
    )
