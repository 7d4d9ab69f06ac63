"""The report's section on the heads."""

from support.measurements.calibrations import HEADS

from medusa_trt.calibration.options import ReplySettings
from medusa_trt.calibration.trees.head_ranks import RankRecord
from medusa_trt.calibration.trees.heads_section import HeadsSection
from medusa_trt.runtime.bundle import Bundle


def test_the_section_summarizes_the_recorded_replies(tiny_bundle: Bundle) -> None:
    heads = tiny_bundle.manifest.require_heads("the test")
    settings = ReplySettings(prompts="test", prompts_sha256="")
    records = [
        RankRecord(
            settings=settings,
            prompt_id=str(number),
            prompt_tokens=5,
            token_ids=[1, 2, 3],
            ranks=[[0] + [-2] * (heads.num_heads - 1), [-1] + [-2] * (heads.num_heads - 1)],
        )
        for number in range(2)
    ]
    section = HeadsSection.from_records(tiny_bundle, records, settings, 2, HEADS.origin)
    assert (section.num_replies, section.num_tokens, section.num_prompts) == (2, 6, 2)
    assert section.counts == [4] + [0] * (heads.num_heads - 1)
    assert section.top_k_accuracies[0] == [0.5] * heads.top_k
    assert section.joint[0] == section.independent[0] == 0.5
    assert section.tree == tiny_bundle.tree.name and 1 <= section.accept_length <= 2
