"""A plan in the terms of ModelOpt, against the products of the graph that it quantizes."""

import re

from support.graphs.planned_graphs import plan_of, planned_graph
from support.tiny_models import llama_config, random_model

from medusa_trt.export.passes.name_products import node_name_from_path
from medusa_trt.export.quantization.modelopt import arguments_from_plan
from medusa_trt.export.quantization.sites import sites_from_model
from medusa_trt.export.weight_formats import Format


def test_modelopt_is_told_the_products_of_a_float16_graph() -> None:
    model = random_model(llama_config())
    sites = sites_from_model(model)
    formats: tuple[Format, ...] = ("int4", "int8", "fp16")
    found = arguments_from_plan(plan_of(sites, formats, "tensorrt"))
    assert found is not None and found.quantize_mode == "int4"
    graph = planned_graph(model.half(), plan_of(sites, ("fp16",), "tensorrt"), "tensorrt").graph
    products = [node.name for node in graph if node.op_type in ("MatMul", "Gemm")]
    told = {
        name: "fp16"
        if any(re.match(pattern, str(name)) for pattern in found.nodes_to_exclude)
        else "int8"
        if name in found.layers_8bit.split(",")
        else "int4"
        for name in products
    }
    for index, site in enumerate(sites):
        names = [
            node_name_from_path(path) for path in site.modules if node_name_from_path(path) in told
        ]
        assert names and {told.pop(name) for name in names} == {formats[index % 3]}
    # The products of attention itself have no weights.
    assert not any(str(name).startswith("/") for name in told)
    first, name = found.nodes_to_exclude[0], "/model/layers.0/mlp/gate_proj/MatMul"
    assert re.match(first, name) and not re.match(first, f"{name}_1")
    assert not re.match(first, name.replace(".", "x"))
    assert arguments_from_plan(plan_of(sites, ("int8", "fp16"))) is None
    assert arguments_from_plan(plan_of(sites, ("int4", "fp8"))) is None
