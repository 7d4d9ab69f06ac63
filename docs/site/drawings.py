"""Drawings of the site as SVG: a tree, its mask, a step's timeline, and step times."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from medusa_trt.tree_configs import MedusaTree

COLOURS = ("#3949ab", "#00897b", "#8d6e63", "#d81b60")
SEEN, HIDDEN = "#3949ab", "#e3e6ef"
NODE_RADIUS, LEVEL_HEIGHT, NODE_WIDTH = 20, 84, 92


def read_figures() -> dict[str, Any]:
    """The measured figures that are drawn, each with its source."""
    text = (Path(__file__).parent / "figures.json").read_text("utf-8")
    figures: dict[str, Any] = json.loads(text)
    return figures


def draw_tree(tree: MedusaTree) -> str:
    """Draws a tree with its root at the top; each node shows its number and its path."""
    places = _place_nodes(tree)
    width = int((max(x for x, _ in places) + 1) * NODE_WIDTH) + 40
    height = (tree.max_depth + 1) * LEVEL_HEIGHT
    points = [(x * NODE_WIDTH + 50, y * LEVEL_HEIGHT + 30) for x, y in places]
    shapes = [
        f'<line x1="{points[parent][0]}" y1="{points[parent][1]}" x2="{x}" y2="{y}" stroke="#888"/>'
        for (x, y), parent in zip(points, tree.parents.tolist(), strict=True)
        if parent >= 0
    ]
    for node, (x, y) in enumerate(points):
        fill = COLOURS[0] if node == 0 else COLOURS[1]
        label = "root" if node == 0 else str(list(tree.medusa_choices[node - 1]))
        shapes.append(f'<circle cx="{x}" cy="{y}" r="{NODE_RADIUS}" fill="{fill}"/>')
        shapes.append(_text(x, y + 5, str(node), fill="#fff", anchor="middle"))
        shapes.append(_text(x + 24, y + 4, label, size=11))
    return _svg(width, height, shapes)


def draw_mask(tree: MedusaTree) -> str:
    """Draws which node (row) sees which other node (column)."""
    size, start = 30, 60
    shapes = [_text(start, 18, "sees node", size=12)]
    for node in range(tree.num_nodes):
        place = start + node * size
        shapes.append(_text(place + size / 2, 38, str(node), anchor="middle", size=12))
        shapes.append(_text(start - 10, place + 5, f"node {node}", anchor="end", size=12))
        for other in range(tree.num_nodes):
            fill = SEEN if tree.attn_mask[node, other] else HIDDEN
            shapes.append(
                f'<rect x="{start + other * size}" y="{46 + node * size}" '
                f'width="{size - 3}" height="{size - 3}" fill="{fill}"/>'
            )
    return _svg(start + tree.num_nodes * size + 10, 56 + tree.num_nodes * size, shapes)


def draw_timeline(figures: Mapping[str, Any]) -> str:
    """Draws the parts of a step one after another, a bar for each kind of step."""
    rows: dict[str, dict[str, int]] = figures["rows"]
    longest = max(sum(parts.values()) for parts in rows.values())
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    shapes = []
    for index, (title, parts) in enumerate(rows.items()):
        y, x = 20 + index * 60, 80.0
        shapes.append(_text(70, y + 22, title, anchor="end"))
        for name, amount in parts.items():
            width = 560 * amount / longest
            colour = COLOURS[names.index(name)]
            shapes.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="34" fill="{colour}">'
                f"<title>{escape(name)}: {amount / 1000:.2f} ms</title></rect>"
            )
            x += width
        total = sum(parts.values()) / 1000
        shapes.append(_text(x + 8, y + 22, f"{total:.1f} ms"))
    shapes += _legend(names, 80, 40 + len(rows) * 60)
    return _svg(720, 60 + len(rows) * 60, shapes)


def plot_step_times(figures: Mapping[str, Any]) -> str:
    """Plots how many times as long as a step of one node a larger step takes."""
    rows: dict[str, dict[str, float]] = figures["rows"]
    sizes = sorted({int(size) for times in rows.values() for size in times})
    highest = max(max(times.values()) / times["1"] for times in rows.values())

    def place(size: int, ratio: float) -> tuple[float, float]:
        return 60 + 560 * sizes.index(size) / (len(sizes) - 1), 280 - 240 * ratio / highest

    shapes = [_text(10, 20, "time of a step, in steps of one node", size=12)]
    for ratio in range(int(highest) + 1):
        y = place(1, ratio)[1]
        shapes.append(f'<line x1="60" y1="{y:.1f}" x2="620" y2="{y:.1f}" stroke="#ddd"/>')
        shapes.append(_text(50, y + 4, str(ratio), anchor="end", size=12))
    for size in sizes:
        shapes.append(_text(place(size, 0)[0], 298, str(size), anchor="middle", size=12))
    shapes.append(_text(340, 316, "nodes of the tree", anchor="middle", size=12))
    for colour, times in zip(COLOURS, rows.values(), strict=False):
        points = [place(int(size), time / times["1"]) for size, time in times.items()]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="3"/>')
    return _svg(720, 366, shapes + _legend(list(rows), 60, 334))


def _place_nodes(tree: MedusaTree) -> list[tuple[float, int]]:
    """Column and level of each node; a node stands over the middle of its children."""
    parents = tree.parents.tolist()
    columns = [0.0] * tree.num_nodes
    num_leaves = 0

    def place(node: int) -> None:
        nonlocal num_leaves
        children = [child for child, parent in enumerate(parents) if parent == node]
        for child in children:
            place(child)
        if children:
            columns[node] = (columns[children[0]] + columns[children[-1]]) / 2
        else:
            columns[node] = num_leaves
            num_leaves += 1

    place(0)
    return list(zip(columns, tree.position_offsets.tolist(), strict=True))


def _legend(names: list[str], x: float, y: float) -> list[str]:
    shapes = []
    step = 660 / max(len(names), 4)
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        left = x + index * step
        shapes.append(f'<rect x="{left:.1f}" y="{y}" width="12" height="12" fill="{colour}"/>')
        shapes.append(_text(left + 17, y + 11, name, size=11))
    return shapes


def _text(
    x: float, y: float, text: str, *, fill: str = "#222", anchor: str = "start", size: int = 14
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-size="{size}" font-family="sans-serif" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, shapes: Iterable[str]) -> str:
    """An SVG with a white ground, so that it can be read in a dark page too."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}">\n'
        '<rect width="100%" height="100%" rx="6" fill="#fff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
