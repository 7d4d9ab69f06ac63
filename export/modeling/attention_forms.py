"""The forms of attention by name, and the choice among those of a target."""

from collections.abc import Sequence

from medusa_trt.export.modeling.attention_form import AttentionForm
from medusa_trt.export.modeling.device_attention import (
    CudaAttention,
    DecomposedAttention,
    DeviceAttention,
)
from medusa_trt.export.modeling.operator_attention import CachedAttention, TreeAttention
from medusa_trt.export.modeling.standard_attention import ScatterAttention

ATTENTION_FORMS: dict[str, type[AttentionForm]] = {
    "tree_attention": TreeAttention,
    "group_query_attention": CachedAttention,
    "tensor_scatter": ScatterAttention,
    "device_attention": DeviceAttention,
    "cuda_attention": CudaAttention,
    "decomposed_attention": DecomposedAttention,
}


def choose_attention(names: Sequence[str], *, has_library: bool) -> dict[str, type[AttentionForm]]:
    """Chooses the form of each verify graph of a bundle.

    Args:
        names: the forms of a target, the preferred one first.
        has_library: whether the bundle needs the operator library anyway.

    Returns:
        The form of "verify", and that of "verify_batch" where the first takes one sequence only.
    """
    forms = [
        form
        for form in (ATTENTION_FORMS[name] for name in names)
        if has_library or not form.uses_library
    ]
    chosen = {"verify": forms[0]}
    if not forms[0].takes_batch:
        chosen["verify_batch"] = next(form for form in forms if form.takes_batch)
    return chosen
