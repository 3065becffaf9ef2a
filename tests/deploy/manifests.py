"""Kubernetes manifests for tests: rendered by Helm's engine or by kubectl, and run as Kubernetes would run them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/baton"
KUSTOMIZE = ROOT / "deploy/kustomize"
Manifest = dict[str, Any]


class Manifests:
    """A release's objects."""

    def __init__(self, objects: list[Manifest]) -> None:
        self.objects = objects

    def of_kind(self, kind: str) -> dict[str, Manifest]:
        return {each["metadata"]["name"]: each for each in self.objects if each["kind"] == kind}

    def pods(self) -> dict[str, Manifest]:
        """Return the pod template of each Deployment and DaemonSet."""
        sets = self.of_kind("Deployment") | self.of_kind("DaemonSet")
        return {name: each["spec"]["template"] for name, each in sets.items()}

    def selected(self, labels: Mapping[str, str]) -> list[str]:
        """Name the Deployments and DaemonSets whose pods have these labels."""
        return [name for name, pod in self.pods().items() if labels.items() <= pod["metadata"]["labels"].items()]


def render(values: Mapping[str, Any] | None = None, *, name: str = "baton", namespace: str = "llm") -> Manifests:
    """Render the chart with Helm's own engine.

    Raises:
        HelmError: the schema refuses the values, or a template fails.
    """
    helm = pytest.importorskip("helm_python", reason="Helm's engine is packaged for Linux on x86-64 only")
    with helm.Chart.load(CHART) as chart:
        given = dict(values or {})
        chart.validate_schema(given)
        rendered = chart.render(given, name=name, namespace=namespace)
    return Manifests([each for file, text in rendered.items() if file.endswith(".yaml") for each in documents(text)])


def build(folder: str) -> Manifests:
    """Build a kustomization with kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", KUSTOMIZE / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Manifests(list(documents(done.stdout)))


def documents(text: str) -> Iterator[Manifest]:
    return (each for each in yaml.safe_load_all(text) if each)


def environment(
    pod: Manifest,
    folder: Path,
    *,
    pod_ip: str,
    secrets: Mapping[str, Mapping[str, str]],
    config: Mapping[str, Manifest],
) -> dict[str, str]:
    """Return what a pod's first container finds in its environment, with its Secrets' files in a folder of ours.

    KeyError: an entry of a Secret is missing.
    """
    container = pod["spec"]["containers"][0]
    mounted = _mount_secrets(pod, folder, secrets)
    values: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        values |= config[source["configMapRef"]["name"]]["data"]
    for entry in container["env"]:
        reference = entry.get("valueFrom", {})
        if "secretKeyRef" in reference:
            wanted = reference["secretKeyRef"]
            entries = secrets.get(wanted["name"], {})
            if wanted["key"] in entries or not wanted.get("optional"):
                values[entry["name"]] = entries[wanted["key"]]
        elif "fieldRef" in reference:
            fields = {"status.podIP": pod_ip, "spec.nodeName": "node-7"}
            values[entry["name"]] = fields[reference["fieldRef"]["fieldPath"]]
        else:
            values[entry["name"]] = mounted.get(entry["value"], entry["value"])
    return values


def _mount_secrets(pod: Manifest, folder: Path, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Write the files of a pod's Secret volumes; return where each lies, by its path in the container."""
    mounted = {}
    paths = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    for volume in pod["spec"]["volumes"]:
        for item in volume.get("secret", {}).get("items", ()):
            file = folder / item["path"]
            file.write_text(secrets[volume["secret"]["secretName"]][item["key"]])
            mounted[f"{paths[volume['name']]}/{item['path']}"] = str(file)
    return mounted
