"""The results of a bundle's calibrations as data: `calibration/calibration.json`."""

from pathlib import Path

import msgspec

from medusa_trt.calibration.latency.section import LatencySection
from medusa_trt.calibration.quantization.section import QuantizationSection
from medusa_trt.calibration.threshold.summary import ThresholdSection
from medusa_trt.calibration.trees.heads_section import HeadsSection
from medusa_trt.calibration.trees.tree_section import TreeSection
from medusa_trt.errors import CalibrationError
from medusa_trt.files import replace_file

FOLDER = "calibration"
JSON_FILE = "calibration.json"

FORMAT_VERSION = 1


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All results. A section is missing until its calibration has run.

    `latency` has a section for each batch size and number of threads. `bundle` is the digest of the
    bundle that was measured.
    """

    format_version: int = FORMAT_VERSION
    model: str
    target: str
    precision: str
    bundle: str = ""
    heads: HeadsSection | None = None
    latency: tuple[LatencySection, ...] = ()
    tree: TreeSection | None = None
    threshold: ThresholdSection | None = None
    quantization: QuantizationSection | None = None


def load_calibration(folder: Path, empty: Calibration) -> Calibration:
    """Reads the results, or returns `empty` where there are none of this bundle yet.

    Raises:
        CalibrationError: the file is damaged, or another release has written it.
    """
    path = folder / JSON_FILE
    if not path.is_file():
        return empty
    try:
        calibration = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise CalibrationError(
            f"cannot read {path} ({error}): delete it and run the calibrations again; their "
            "measurements are kept"
        ) from error
    if calibration.format_version != FORMAT_VERSION:
        raise CalibrationError(
            f"{path} has format version {calibration.format_version}, this release reads "
            f"{FORMAT_VERSION}: delete it"
        )
    return calibration if calibration.bundle == empty.bundle else empty


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Writes the results, whole or not at all.

    Raises:
        MedusaError: the file cannot be written.
    """
    folder.mkdir(exist_ok=True)
    with replace_file(folder / JSON_FILE) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=2))
