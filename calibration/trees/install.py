"""Puts another tree into a bundle, which stays consistent even if the process is killed.

Three files change together: the tree, its graph, and the manifest with their hashes. They are
first written to a temporary folder. Renaming it commits the change: from then on the files are
moved into the bundle, by this process or, if it is killed, by the next calibration.
"""

from pathlib import Path

import msgspec

from medusa_trt.errors import CalibrationError, require_extra
from medusa_trt.files import check_writable, make_folder
from medusa_trt.runtime.bundle import Bundle, sha256_from_file
from medusa_trt.runtime.manifest import FileSpec
from medusa_trt.runtime.tensors import GRAPH_FILES, MANIFEST_FILE, TREE_FILE
from medusa_trt.tree_configs import MedusaTree

_STAGED = "new-tree"


def check_installable(bundle: Bundle) -> None:
    """Checks before the long work that a tree can be installed at its end.

    Raises:
        CalibrationError: onnx-ir, which writes the tree's graph, is not installed, or the bundle
            cannot be written.
    """
    otherwise = "use --dry-run and generate with --tree"
    with require_extra(
        "writing a tree's graph", "export", error_class=CalibrationError, otherwise=otherwise
    ):
        import medusa_trt.export.graphs.graph_files  # noqa: F401
    check_bundle_writable(bundle.path)


def check_bundle_writable(path: Path) -> None:
    """Checks before the long work that a bundle, or its folder of measurements, can be written.

    Raises:
        CalibrationError: it cannot.
    """
    advice = "calibrate a copy of the bundle in a place that you may write to"
    check_writable(path, CalibrationError, is_folder=True, advice=advice)


def install_tree(bundle: Bundle, tree: MedusaTree, folder: Path) -> Bundle:
    """Replaces the bundle's tree.

    Args:
        bundle: the bundle.
        tree: the new tree.
        folder: the bundle's folder for calibrations.

    Returns:
        The bundle, opened again.

    Raises:
        TreeError: the bundle's heads cannot fill the tree.
        CalibrationError: the bundle cannot be written.
    """
    from medusa_trt.export.graphs.graph_files import describe_graph
    from medusa_trt.export.graphs.tree_graph import make_tree_graph

    bundle.manifest.check_tree(tree)
    import onnx_ir as ir

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalibrationError(f"cannot write {folder}: {error.strerror or error}") from error
    with make_folder(folder / _STAGED, False, CalibrationError) as staged:
        tree.save(staged / TREE_FILE)
        graph_file = GRAPH_FILES["tree"]
        ir.save(make_tree_graph(tree, bundle.manifest.target.opset), staged / graph_file)
        graphs = bundle.manifest.graphs | {"tree": describe_graph(staged, "tree")}
        files = {
            path.name: FileSpec(path.stat().st_size, sha256_from_file(path))
            for path in (staged / TREE_FILE, staged / graph_file)
        }
        manifest = msgspec.structs.replace(
            bundle.manifest,
            tree_name=tree.name,
            graphs=graphs,
            files=bundle.manifest.files | files,
        )
        (staged / MANIFEST_FILE).write_bytes(manifest.to_json())
    finish_install(bundle.path, folder)
    return Bundle.open(bundle.path, check_hashes=False)


def finish_install(bundle_path: Path, folder: Path) -> None:
    """Finishes what a killed `install_tree` had committed; otherwise does nothing.

    Raises:
        CalibrationError: the bundle cannot be written.
    """
    staged = folder / _STAGED
    try:
        if not staged.is_dir():
            return
        for path in sorted(staged.iterdir()):
            path.replace(bundle_path / path.name)
        staged.rmdir()
    except OSError as error:
        raise CalibrationError(
            f"cannot write the tree to {bundle_path}: {error.strerror or error}"
        ) from error
