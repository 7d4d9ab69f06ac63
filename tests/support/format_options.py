"""Sites with a few formats each, and every combination of them."""

from itertools import product

from hypothesis import strategies as st

from medusa_trt.calibration.quantization.frontier import Option
from medusa_trt.export.weight_formats import Format

FORMATS: tuple[Format, ...] = ("int4", "int8", "fp16")
Sites = dict[str, list[Option]]


@st.composite
def sites(draw: st.DrawFn) -> Sites:
    """A few sites; sums of KLs are exact, whatever their order."""
    options = {}
    for number in range(draw(st.integers(1, 5))):
        formats = draw(st.lists(st.sampled_from(FORMATS), min_size=1, max_size=3, unique=True))
        options[f"layers.{number}.o"] = [
            Option(format_, draw(st.integers(0, 20)), draw(st.integers(0, 64)) / 64)
            for format_ in formats
        ]
    return options


def every_choice(options: Sites) -> list[tuple[int, float, dict[str, Format]]]:
    """Size, KL and formats of each combination."""
    return [
        (
            sum(option.size_bytes for option in chosen),
            sum(option.kl for option in chosen),
            {name: option.format for name, option in zip(options, chosen, strict=True)},
        )
        for chosen in product(*options.values())
    ]


def cost(options: Sites, formats: dict[str, Format]) -> tuple[int, float]:
    """Size and KL of a choice."""
    assert list(formats) == list(options)
    chosen = [
        next(option for option in options[name] if option.format == format_)
        for name, format_ in formats.items()
    ]
    return sum(option.size_bytes for option in chosen), sum(option.kl for option in chosen)
