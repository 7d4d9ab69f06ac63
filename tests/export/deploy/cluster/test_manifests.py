"""Manifests fit the server: its paths, its measurements, its options, the bundle's memory."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.table_session import session_on_table

from medusa_trt.export.deploy.cluster.manifests import estimate_memory_bytes
from medusa_trt.export.deploy.deployment import deploy
from medusa_trt.runtime.bundle import Bundle
from medusa_trt.serving.app import make_app
from medusa_trt.serving.options import ServingOptions
from medusa_trt.serving.replicas.options import read_arguments


def write_manifests(bundle: Bundle, kind: str, folder: Path) -> dict[str, list[Any]]:
    """The documents of each YAML file."""
    files = deploy(bundle, kind, folder / kind)
    return {
        file.name: list(yaml.safe_load_all(file.read_text()))
        for file in files
        if file.suffix == ".yaml"
    }


def read_pod(document: Any) -> Any:
    """The pod of a Deployment, or of KServe's InferenceService."""
    if document["kind"] == "Deployment":
        return document["spec"]["template"]["spec"]
    return document["spec"]["predictor"]


@pytest.fixture(scope="module")
def kubernetes(
    tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    return write_manifests(tiny_bundle, "kubernetes", tmp_path_factory.mktemp("out"))


def test_the_kinds_select_the_same_pods(kubernetes: dict[str, list[Any]]) -> None:
    deployment, service, autoscaler, budget = kubernetes["kubernetes.yaml"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "each apply would undo what the autoscaler did"
    (container,) = read_pod(deployment)["containers"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", deployment["metadata"]["name"])


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_pods_may_do_little(kubernetes: dict[str, list[Any]], file: str) -> None:
    pod = read_pod(kubernetes[file][0])
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["tmp"] == "/tmp" and mounts.keys() == {each["name"] for each in pod["volumes"]}


@pytest.mark.parametrize("file", ["kubernetes.yaml", "kserve.yaml"])
def test_probes_and_options_are_the_servers(
    kubernetes: dict[str, list[Any]], file: str, tiny_bundle: Bundle
) -> None:
    pod = read_pod(kubernetes[file][0])
    (container,) = pod["containers"]
    session, _ = session_on_table(tiny_bundle)
    with session:
        paths = make_app(session, ServingOptions()).openapi()["paths"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness")}
    assert {probe["path"] for probe in probes.values()} == {"/ready"} <= paths.keys()
    assert container["livenessProbe"]["httpGet"]["path"] == "/health" in paths
    names = {f"--{field.name.replace('_', '-')}" for field in fields(ServingOptions)}
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert options.keys() <= names
    assert pod["terminationGracePeriodSeconds"] >= int(options["--grace-s"]) + 11
    requested = container["resources"]["requests"]["memory"]
    needed = estimate_memory_bytes(tiny_bundle, int(options["--max-sequences"]))
    assert 0 <= int(requested.removesuffix("Mi")) * 2**20 - needed < 2**20
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_the_autoscaler_counts_what_the_server_measures(
    kubernetes: dict[str, list[Any]], tiny_bundle: Bundle
) -> None:
    (metric,) = kubernetes["kubernetes.yaml"][2]["spec"]["metrics"]
    (rule,) = kubernetes["prometheus_adapter.yaml"][0]["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    session, _ = session_on_table(tiny_bundle)
    with session:
        service = make_app(session, ServingOptions()).state.service
        page = service.metrics.render().decode()
    named = set(re.findall(r"vllm:\w+", rule["metricsQuery"] + rule["seriesQuery"]))
    assert len(named) == 2 and all(f"\n{name}{{" in page for name in named)


def test_a_gpu_and_engines_have_their_place(trt_bundle: Bundle, tmp_path: Path) -> None:
    manifests = write_manifests(trt_bundle, "kubernetes", tmp_path)
    for file in ("kubernetes.yaml", "kserve.yaml"):
        pod = read_pod(manifests[file][0])
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/app/bundle/engines" in mounts
        assert container["startupProbe"]["failureThreshold"] * 5 == 3600
    (compose,) = write_manifests(trt_bundle, "compose", tmp_path)["compose.yaml"]
    assert compose["services"]["server"]["volumes"] == ["engines:/app/bundle/engines"]
    text = (tmp_path / "compose/Containerfile").read_text()
    assert text.index("chown -R 10001:10001 bundle/engines") < text.index("USER 10001:10001")


def test_compose_starts_the_container(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (compose,) = write_manifests(tiny_bundle, "compose", tmp_path)["compose.yaml"]
    server = compose["services"]["server"]
    assert server["read_only"] and server["cap_drop"] == ["ALL"] and server["tmpfs"] == ["/tmp"]
    assert server["ports"] == ["127.0.0.1:8000:8000"]
    assert (tmp_path / "compose" / server["build"]["dockerfile"]).exists()
    assert (tmp_path / "compose" / server["healthcheck"]["test"][1]).exists()


def test_rays_arguments_are_known(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (config,) = write_manifests(tiny_bundle, "ray", tmp_path)["serve_config.yaml"]
    (application,) = config["applications"]
    options, server = read_arguments(application["args"])
    assert options.bundle == "/app/bundle" and server.max_sequences == 4
    assert application["import_path"] == "medusa_trt.serving.ray_app:app"


@pytest.mark.slow
@pytest.mark.parametrize("fixture", ["tiny_bundle", "trt_bundle"])
def test_kubernetes_takes_the_manifests(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The package holds the schemas of all versions: 108 MB."""
    validate = pytest.importorskip("kubernetes_validate").validate
    documents = write_manifests(request.getfixturevalue(fixture), "kubernetes", tmp_path)
    for document in documents["kubernetes.yaml"]:
        validate(document, "1.34", strict=True)
