"""Checks of pictures."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase


def check_texts_apart(figure: Figure) -> None:
    """Fails if two texts overlap, a point or a line's end lies on one, or one leaves the figure."""
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    undrawn = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text not in undrawn]
    for (first, box), (second, other) in combinations(boxes, 2):
        assert not _overlaps(box, other), f"{first!r} lies on {second!r}"
    for name, box in boxes:
        assert _overlaps(box, figure.bbox) and box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, name
    for axes in figure.axes:
        legend = axes.get_legend()
        frames = boxes + ([("the legend", legend.get_window_extent())] if legend else [])
        points = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
        points += [axes.transData.transform(dots.get_offsets()) for dots in axes.collections]
        for name, box in frames:
            for x, y in (point for group in points for point in group):
                assert not (box.x0 < x < box.x1 and box.y0 < y < box.y1), (
                    f"a point lies on {name!r}"
                )


def _overlaps(first: BboxBase, second: BboxBase) -> bool:
    shared = Bbox.intersection(first, second)
    return shared is not None and shared.width > 1 and shared.height > 1
