"""The drawings show what the trees and the decisions say."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from drawings import SEEN, draw_mask, draw_timeline, draw_tree, plot_step_times, read_figures

from medusa_trt.tree_configs import load_tree

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", ["plain", "chain-3", "smollm2_135m_8", "mc_sim_7b_63"])
def test_a_tree_has_a_circle_for_each_node_and_a_line_to_its_parent(name: str) -> None:
    tree = load_tree(name)
    drawing = ElementTree.fromstring(draw_tree(tree))
    circles = [(c.get("cx"), c.get("cy")) for c in drawing.iter(f"{SVG}circle")]
    lines = {
        ((line.get("x1"), line.get("y1")), (line.get("x2"), line.get("y2")))
        for line in drawing.iter(f"{SVG}line")
    }
    assert len(set(circles)) == tree.num_nodes
    parents = enumerate(tree.parents.tolist())
    assert lines == {(circles[up], circles[node]) for node, up in parents if up >= 0}


def test_the_mask_is_that_of_the_tree() -> None:
    tree = load_tree("smollm2_135m_8")
    squares = list(ElementTree.fromstring(draw_mask(tree)).iter(f"{SVG}rect"))[1:]
    assert [square.get("fill") == SEEN for square in squares] == tree.attn_mask.ravel().tolist()


def test_the_bars_of_the_timeline_are_as_long_as_its_times() -> None:
    parts = {"one": {"a": 100, "b": 300}, "two": {"a": 400, "b": 400}}
    drawing = ElementTree.fromstring(draw_timeline({"rows": parts}))
    bars = [bar for bar in drawing.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    assert [bar.get("width") for bar in bars] == ["70.0", "210.0", "280.0", "280.0"]


def test_a_step_twice_as_long_lies_twice_as_high() -> None:
    drawing = plot_step_times({"rows": {"a processor": {"1": 5.0, "8": 10.0}}})
    (line,) = re.findall(r'points="([^"]+)"', drawing)
    (_, one), (_, eight) = [map(float, point.split(",")) for point in line.split()]
    assert 280 - eight == pytest.approx(2 * (280 - one), abs=0.2)


@pytest.mark.parametrize("name", ["parts_of_a_step", "step_times"])
def test_every_figure_stands_in_its_source(name: str) -> None:
    figures = read_figures()[name]
    pages = re.findall(r"docs/[\w/]+\.md", figures["source"])
    text = "\n".join((ROOT / page).read_text("utf-8") for page in pages).replace(",", "")
    sums = {491: 9474 - 8235 - 748, 622: 12540 - 10611 - 1307, 800: 1000 * 0.80}
    for row in figures["rows"].values():
        for figure in row.values():
            shown = sums.get(figure) == figure or re.search(rf"\b{figure}\b", text)
            assert shown, figure
