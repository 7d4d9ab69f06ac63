"""Keeps a run from continuing the checkpoints of a run with other data or options."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from medusa_trt.errors import TrainingError
from medusa_trt.files import replace_file
from medusa_trt.training.data.shards import DataSpec
from medusa_trt.training.options import JointOptions, TrainOptions

_FILE = "run.json"


def check_same_run(
    folder: Path, specs: Sequence[DataSpec], options: TrainOptions | JointOptions
) -> None:
    """Writes the data and options of a run beside its checkpoints, or compares them.

    The record of a run without a checkpoint is replaced.

    Raises:
        TrainingError: the folder holds a run with other data or options, or cannot be written.
    """
    record = msgspec.json.format(
        msgspec.json.encode({"data": list(specs), "options": options}), indent=2
    )
    file = folder / _FILE
    try:
        if file.is_file() and file.read_bytes() == record:
            return
        if file.is_file() and any(folder.glob(f"**/{PREFIX_CHECKPOINT_DIR}-*")):
            raise TrainingError(
                f"{folder} holds a run with other data or options (see {file}): "
                "give another --output, or the same options to continue it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(file, TrainingError) as temporary:
            temporary.write_bytes(record)
    except OSError as error:
        raise TrainingError(f"cannot write {folder}: {error.strerror or error}") from error
