"""The figure behind a picture, so that tests can ask what is drawn on it."""

from halfv_probe.views.canvas import WIDE, render


def drawn(draw, *arguments, inches=(WIDE, 7.0)):
    """The settled figure that ``draw(figure, *arguments)`` made."""
    figure = []
    render(lambda new: (figure.append(new), draw(new, *arguments)), inches, "png")
    return figure[0]


def inside(figure):
    """Is every text that is shown wholly on the page, and the legend beside all axes?"""
    legend = figure.legends[0].get_window_extent()
    apart = not any(legend.overlaps(axes.get_window_extent()) for axes in figure.axes if axes.axison)
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison] + [legend]
    page = figure.bbox.padded(1)
    return apart and all(page.containsx(x) and page.containsy(y) for box in boxes for x, y in box.corners())
