"""Where a section of the report comes from, and for which bundle."""

import dataclasses
import sys

import msgspec
import pytest

from medusa_trt.calibration.machine import Machine
from medusa_trt.calibration.origin import Origin, digest_bundle
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.runtime.manifest import FileSpec
from medusa_trt.runtime.tensors import TREE_FILE, WEIGHTS_FILE


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/medusa-trt", "bench", "my bundle"])
    origin = Origin.from_command(Machine.detect(), duration_s=1.23456, is_complete=True)
    assert origin.command == "medusa-trt bench 'my bundle'"
    assert origin.duration_s == 1.235 and origin.date.count(":") >= 2


@pytest.mark.parametrize(("file", "matters"), [(TREE_FILE, False), (WEIGHTS_FILE, True)])
def test_a_digest_depends_on_all_files_but_the_tree(
    tiny_bundle: Bundle, file: str, matters: bool
) -> None:
    manifest = tiny_bundle.manifest
    files = manifest.files | {file: FileSpec(1, "0" * 64)}
    changed = dataclasses.replace(
        tiny_bundle, manifest=msgspec.structs.replace(manifest, files=files)
    )
    assert (digest_bundle(changed) != digest_bundle(tiny_bundle)) == matters
