"""A tree is put into a bundle whole or not at all."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from medusa_trt.calibration.trees import install as tree_install
from medusa_trt.errors import BundleError, TreeError
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.session import GenerationOptions, MedusaSession
from medusa_trt.tree_configs import MedusaTree, chain_tree


def test_an_installed_tree_is_whole(bundle: Path) -> None:
    tree = MedusaTree.from_choices([(0,), (1,), (0, 0)], name="calibrated-4")
    installed = tree_install.install_tree(Bundle.open(bundle), tree, bundle / "calibration")
    opened = Bundle.open(bundle)
    assert installed.tree == opened.tree == tree and opened.tree.name == "calibrated-4"
    outputs = ir.load(bundle / "tree.onnx").graph.outputs
    assert [tuple(output.shape or ()) for output in outputs] == [(4, 4), (4,)]
    assert [spec.shape for spec in opened.manifest.graphs["tree"].outputs] == [[4, 4], [4]]
    mask = outputs[0].producer()
    assert mask is not None
    constant = mask.attributes["value"].as_tensor().numpy()
    np.testing.assert_array_equal(constant == 0, tree.attn_mask)
    with MedusaSession(opened, num_threads=1) as session:
        session.generate("hello", GenerationOptions(max_new_tokens=4))


@pytest.mark.parametrize("num_moved", [0, 1, 2])
def test_a_killed_installation_is_finished_by_the_next_run(
    bundle: Path, num_moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves, replace = 0, Path.replace

    def killed(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves > num_moved:
            raise KeyboardInterrupt
        return replace(path, target)

    folder = bundle / "calibration"
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tree_install.install_tree(Bundle.open(bundle), chain_tree(2), folder)
    monkeypatch.undo()
    if num_moved:
        with pytest.raises((BundleError, TreeError)):
            Bundle.open(bundle)
    tree_install.finish_install(bundle, folder)
    assert Bundle.open(bundle).tree == chain_tree(2)
    assert list(folder.iterdir()) == []


def test_trees_that_the_heads_cannot_fill_are_not_installed(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(TreeError):
        tree_install.install_tree(Bundle.open(bundle), chain_tree(9), bundle / "calibration")
    assert (bundle / "manifest.json").read_bytes() == before
