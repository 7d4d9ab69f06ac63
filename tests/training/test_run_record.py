"""Runs that go on, and runs that are refused because they are other ones."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support.ruled_data import DATA_SPEC

from medusa_trt.errors import TrainingError
from medusa_trt.training.options import JointOptions, TrainOptions
from medusa_trt.training.run_record import check_same_run


def test_a_run_with_a_checkpoint_goes_on_with_the_same_data_and_options_only(
    tmp_path: Path,
) -> None:
    folder, options = tmp_path / "out", TrainOptions()
    check_same_run(folder, [DATA_SPEC], options)
    check_same_run(
        folder, [DATA_SPEC, DATA_SPEC], JointOptions()
    )  # Nothing was trained: it is replaced.
    check_same_run(folder, [DATA_SPEC], options)
    (folder / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    check_same_run(folder, [DATA_SPEC], TrainOptions())
    before = sorted(folder.rglob("*"))
    content = (folder / "run.json").read_bytes()
    for specs, others in (
        ([msgspec.structs.replace(DATA_SPEC, seed=1)], options),
        ([DATA_SPEC, DATA_SPEC], options),
        ([DATA_SPEC], replace(options, learning_rate=2e-3)),
        ([DATA_SPEC], JointOptions()),
    ):
        with pytest.raises(TrainingError, match="a run with other data or options") as raised:
            check_same_run(folder, specs, others)
        assert str(folder / "run.json") in str(raised.value)
    assert sorted(folder.rglob("*")) == before
    assert (folder / "run.json").read_bytes() == content


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TrainingError, match=f"cannot write {tmp_path}/out"):
        check_same_run(tmp_path / "out", [DATA_SPEC], TrainOptions())
