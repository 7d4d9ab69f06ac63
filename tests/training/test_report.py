"""Written results of a training: heads, curves, table and model card."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.figure import Figure
from support.ruled_data import DATA_SPEC
from support.tiny_models import TINY_HEADS, head_tensors, save_tiny_heads

from medusa_trt.export.head_conversion.saving import name_tensors
from medusa_trt.export.heads.formats import FORMATS
from medusa_trt.export.heads.loading import heads_from_path
from medusa_trt.export.heads.medusa_heads import MedusaHeads
from medusa_trt.training.accuracy import Accuracy
from medusa_trt.training.options import TrainOptions
from medusa_trt.training.report import format_accuracy, save_curves, save_heads, save_report
from medusa_trt.training.trainer import TrainResult
from medusa_trt.tree_configs import MedusaTree, load_tree

TREE = MedusaTree.from_choices([(0,), (1,), (0, 0)], name="best-4")
ACCURACY = Accuracy((0.5, 0.25), (0.7512, 0.4), (0.9, 1.0), TREE, 1.875, 1234)
LOG = [
    {"step": 1, "loss": 3.0},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_tokens_per_step": 1.8, "eval_head_1_top_1": 0.4, "eval_head_2_top_1": 0.2},
]


@pytest.fixture
def heads(tmp_path: Path) -> MedusaHeads:
    return heads_from_path(save_tiny_heads(tmp_path / TINY_HEADS, head_tensors(num_heads=2)))


def test_written_heads_are_those_that_were_trained_as_float16(
    heads: MedusaHeads, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    save_heads(heads, folder, "tiny")
    row = FORMATS["medusa-trt"]
    expected = name_tensors(heads, row, torch.float16)
    tensors = name_tensors(heads_from_path(folder), row, torch.float16)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())
    config = json.loads((folder / row.config_file).read_text())
    assert config["medusa_num_heads"] == 2


def test_accuracies_become_a_table_in_percent() -> None:
    assert format_accuracy(ACCURACY).splitlines() == [
        "| head | top-1 | top-5 | top-10 |",
        "|---|---|---|---|",
        "| 1 | 50.0 | 75.1 | 90.0 |",
        "| 2 | 25.0 | 40.0 | 100.0 |",
    ]


@pytest.mark.parametrize("num_fit_tokens", [0, 6543])
def test_the_card_says_data_accuracy_and_options(
    num_fit_tokens: int, heads: MedusaHeads, tmp_path: Path
) -> None:
    result = TrainResult(heads, ACCURACY, LOG, 123_456, num_fit_tokens)
    longer = msgspec.structs.replace(DATA_SPEC, num_turns=2, num_conversations=5000, seed=7)
    options = TrainOptions(learning_rate=3e-4)
    save_report(result, tmp_path, "Heads for tiny", [DATA_SPEC, longer], options)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("# Heads for tiny\n") and format_accuracy(ACCURACY) in card
    assert "on 123,456 tokens" in card and "(1,234 tokens" in card
    assert ("fitted on 6,543 tokens" in card) == (num_fit_tokens > 0)
    assert "- 4 conversations with 1 reply of up to 8 tokens, at temperatures 0, 0.7 in" in card
    assert "- 5,000 conversations with 2 replies of up to 8 tokens" in card and "seed 7" in card
    assert "adds 1.875 tokens" in card and "the tree of 4 nodes in\n`medusa_tree.json`" in card
    assert "- learning_rate: 0.0003\n" in card
    assert load_tree(str(tmp_path / "medusa_tree.json")).medusa_choices == TREE.medusa_choices
    assert json.loads((tmp_path / "log.json").read_text()) == LOG


def test_the_curves_are_those_of_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    save_curves(LOG, tmp_path / "curves.png", "title")
    drawn = {
        axis.get_title(): [np.asarray(line.get_xydata()).tolist() for line in axis.lines]
        for axis in figures[0].axes
    }
    assert drawn == {
        "loss": [[[1, 3.0], [2, 2.0]]],
        "top-1 accuracy, held out": [[[2, 0.4]], [[2, 0.2]]],
        "tokens per step, held out": [[[2, 1.8]]],
    }


def test_curves_of_a_log_without_measurements_are_a_picture_too(tmp_path: Path) -> None:
    save_curves(LOG[:2], tmp_path / "curves.png", "title")
    assert image.imread(tmp_path / "curves.png").shape == (480, 1440, 4)
