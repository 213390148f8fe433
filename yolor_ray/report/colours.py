"""Define the colours of classes in plots, pictures and pages."""

COLOURS = ("#2f8dff", "#ff9f0a", "#ff4d6d", "#1fc16b", "#b57bff", "#ff7ac6", "#00c2c7", "#c5d93b", "#9c6b4a", "#8ea2ff")


def colour(label: int) -> str:
    """Return the colour of a class; colours repeat after ten classes."""
    return COLOURS[label % len(COLOURS)]


def rgb(label: int) -> tuple[int, int, int]:
    """Return the colour of a class as red, green and blue, 0 to 255."""
    red, green, blue = bytes.fromhex(colour(label)[1:])
    return red, green, blue
