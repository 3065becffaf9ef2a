"""The chart and the plain manifests agree with the API, with themselves, and with the commands that they run."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
import zmq
from tests.deploy.manifests import CHART, Manifests, build, documents, environment, render

from baton import cli, services
from baton.config import EngineConfig
from baton.metrics import RouterMetrics, StoreMetrics, WorkerMetrics
from baton.router.config import RouterConfig
from baton.worker.settings import WorkerConfig

EVERYTHING: dict[str, Any] = {
    "model": "Qwen/Qwen3-0.6B",
    "servedModelName": "qwen",
    "huggingFace": {"secretName": "hugging-face"},
    "modelCache": {"kind": "claim", "storageClassName": "fast"},
    "image": {"prefix": "registry.example.com/", "pullSecrets": [{"name": "pull"}]},
    "router": {
        "settings": {"drain-s": 7.5, "policy": "least-load"},
        "service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}},
        "nodeSelector": {"a": "b"},
        "affinity": {"nodeAffinity": {}},
    },
    "prefill": {
        "gpus": 2,
        "env": {"NCCL_DEBUG": "WARN"},
        "settings": {"max-num-seqs": 8, "drain-s": 120},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "autoscaling": {"enabled": True, "maxReplicas": 3},
    },
    "decode": {"settings": {"also-prefill": True, "lease-s": 20}, "autoscaling": {"enabled": True}},
    "kvstore": {"enabled": True, "settings": {"kv-store-size": 64, "kv-store-dir": "/models/blocks"}},
    "redis": {"enabled": False, "url": "rediss://redis.example.com:6380"},
    "networkPolicy": {"clients": [{"podSelector": {}}]},
    "monitoring": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
}
RELEASES: dict[str, Any] = {
    "defaults": dict,
    "everything": lambda: EVERYTHING,
    "gpu": lambda: yaml.safe_load((CHART / "values-gpu.yaml").read_text()),
}
PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
KEYS = {
    "cache_key": "c" * 32,
    "redis_password": "p" * 32,
    "api_key": "baton-key",
    "curve_public_key": PUBLIC,
    "curve_secret_key": SECRET,
}
SECRETS = {"baton-secrets": KEYS, "hugging-face": {"token": "hf"}}


@pytest.fixture(params=[*RELEASES, "base", "cpu-demo", "gpu-overlay"])
def release(request: pytest.FixtureRequest) -> Manifests:
    if request.param in RELEASES:
        return render(RELEASES[request.param]())
    return build(request.param.removesuffix("-overlay"))


def roles(release: Manifests) -> dict[str, dict[str, Any]]:
    """Return the pods of Baton's own services by role."""
    found = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in release.pods().values()}
    return {role: found[role] for role in ("router", "prefill", "decode", "kvstore") if role in found}


def check_against_the_api(manifests: Manifests) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate.utils")
    versions = [v for v in kubernetes_validate.all_versions() if tuple(map(int, v.split(".")))[:2] >= (1, 25)]
    for each in manifests.objects:
        if each["kind"] in ("ServiceMonitor", "ScaledObject"):
            continue  # others' kinds, whose schemas the API does not have
        for version in (versions[0], versions[-1]):
            kubernetes_validate.validate(each, version, strict=True)


def test_the_api_takes_every_object(release: Manifests) -> None:
    check_against_the_api(release)


def test_helm_finds_nothing_to_complain_of() -> None:
    helm = pytest.importorskip("helm_python")
    report = helm.lint(CHART, EVERYTHING)
    assert not report["errors"]
    assert {m["error"] for m in report["messages"]} <= {"icon is recommended"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"decode": {"replicas": 0}}, "/decode/replicas"),
        ({"decode": {"settings": {"max-num-seq": 4}}}, "max-num-seq"),
        ({"router": {"settings": {"policy": "best"}}}, "/router/settings/policy"),
        ({"router": {"settings": {"api-key": ["in-a-config-map"]}}}, "api-key"),
        ({"prefill": {"autoscaling": {"minReplicas": 0}}}, "/prefill/autoscaling/minReplicas"),
        ({"prefill": {"settings": {"drain-s": "soon"}}}, "/prefill/settings/drain-s"),
        ({"redis": {"enabled": False}}, "/redis/url"),
        ({"modelCache": {"kind": "disk"}}, "/modelCache/kind"),
        ({"replicas": 3}, "replicas"),
        ({"secretName": ""}, "/secretName"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(Exception, match=re.escape(named)) as refused:
        render(values)
    assert type(refused.value).__name__ == "HelmValuesError"


def test_selectors_select_one_role_and_ports_are_there(release: Manifests) -> None:
    pods = release.pods()
    for name, each in (release.of_kind("Deployment") | release.of_kind("DaemonSet")).items():
        assert release.selected(each["spec"]["selector"]["matchLabels"]) == [name]
    for name, each in release.of_kind("PodDisruptionBudget").items():
        assert release.selected(each["spec"]["selector"]["matchLabels"]) == [name]
    for name, each in release.of_kind("Service").items():
        assert release.selected(each["spec"]["selector"]) == [name]
        offered = {port["name"] for port in pods[name]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= offered
    for pod in pods.values():
        (container,) = pod["spec"]["containers"]
        offered = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "httpGet" in container.get(probe, {}):
                assert container[probe]["httpGet"]["port"] in offered
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in release.of_kind("ConfigMap")
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in release.of_kind("PersistentVolumeClaim")
    for each in release.of_kind("ScaledObject").values():
        target = each["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in release.of_kind("Deployment")[target]["spec"]


def test_only_who_needs_to_reaches_a_pod(release: Manifests) -> None:
    """Everything that is not named here is closed, since each pod has a policy of its own."""
    deployments = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: name for name, pod in release.pods().items()
    }
    reaches: dict[tuple[str, Any], set[str]] = {}
    closed = set()
    for each in release.of_kind("NetworkPolicy").values():
        (to,) = release.selected(each["spec"]["podSelector"]["matchLabels"])
        closed.add(to)
        for rule in each["spec"]["ingress"]:
            peers = {
                name
                for peer in rule.get("from", ())
                for name in release.selected(peer.get("podSelector", {}).get("matchLabels", {"": "no pod of ours"}))
            }
            for port in rule["ports"]:
                reaches[to, port["port"]] = peers
                if port["port"] not in ("http", "control", "redis"):
                    first = settings_of(release, roles(release)["decode"])["kv-port"]
                    assert (port["port"], port["endPort"]) == (first, first + 3)  # a socket each, at most four
                    reaches[to, "kv"] = reaches.pop((to, port["port"]))
    router, prefill, decode = (deployments[role] for role in ("router", "prefill", "decode"))
    assert closed == set(deployments.values())
    for worker in (prefill, decode):
        assert reaches.pop((worker, "control")) == {router}
        assert reaches.pop((worker, "kv")) == {prefill, decode}
        assert reaches.pop((worker, "http")) == set()  # Prometheus, in another namespace
    assert reaches.pop((router, "http")) == set() or "podSelector" in str(release.of_kind("NetworkPolicy")[router])
    if "redis" in deployments:
        callers = {router, prefill, decode, *([deployments["kvstore"]] if "kvstore" in deployments else [])}
        assert reaches.pop((deployments["redis"], "redis")) == callers
    if "kvstore" in deployments:
        assert reaches.pop((deployments["kvstore"], "http")) == set()
    assert not reaches


def test_pods_may_do_nothing_that_they_need_not(release: Manifests) -> None:
    for pod in release.pods().values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
    text = str([each for each in release.objects if each["kind"] == "ConfigMap"])
    assert not [value for value in KEYS.values() if value in text]


def settings_of(release: Manifests, pod: dict[str, Any]) -> dict[str, Any]:
    (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "settings")
    return yaml.safe_load(release.of_kind("ConfigMap")[volume["configMap"]["name"]]["data"]["settings.yaml"])


def parse(release: Manifests, role: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """Return what a pod's command, its file and its environment come to, as the real parser reads them."""
    pod = roles(release)[role]
    given = environment(pod, folder, pod_ip="10.1.2.3", secrets=SECRETS, config=release.of_kind("ConfigMap"))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    file = folder / f"{role}.yaml"
    file.write_text(yaml.safe_dump(settings_of(release, pod)))
    program, command, *arguments = pod["spec"]["containers"][0]["command"]
    assert (program, command, *arguments[:-1]) == ("baton", role, "--config")
    parsed: list[tuple[Any, ...]] = []
    for name in ("run_router", "run_worker", "run_kvstore"):
        monkeypatch.setattr(services, name, lambda *settings: parsed.append(settings) or 0)
    group = typer.main.get_command(cli.app)
    with pytest.raises(SystemExit) as ended:
        group.main([command, "--config", str(file)])
    assert ended.value.code in (0, None)
    (settings,) = parsed
    return settings


def test_the_router_understands_its_pod(release: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, http, _ = parse(release, "router", tmp_path, monkeypatch)
    http.check(config.host, config.api_key)
    pod = roles(release)["router"]["spec"]
    assert isinstance(config, RouterConfig)
    assert config.port == pod["containers"][0]["ports"][0]["containerPort"]
    assert config.host == "0.0.0.0"
    assert config.api_key == ("baton-key",)
    assert (config.curve_server_key, config.curve_public_key, config.curve_secret_key) == (PUBLIC, PUBLIC, SECRET)
    assert config.redis_password == KEYS["redis_password"]
    (sleep, pause_s) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] > float(pause_s) + config.drain_s
    ready = pod["containers"][0]["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] >= config.worker_wait_s


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_worker_understands_its_pod(
    release: Manifests, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, worker, _logs, legs = parse(release, role, tmp_path, monkeypatch)
    pod = roles(release)[role]["spec"]
    assert isinstance(engine, EngineConfig)
    assert isinstance(worker, WorkerConfig)
    assert legs[0] == role
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert ports == {"http": worker.port, "control": worker.control_port, "kv": worker.kv_port}
    assert ipaddress.ip_address(worker.reached_at) == ipaddress.ip_address("10.1.2.3")
    assert (worker.curve_public_key, worker.curve_secret_key) == (PUBLIC, SECRET)
    assert pod["terminationGracePeriodSeconds"] > worker.drain_s + worker.lease_s + 15
    has_gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
    assert engine.device == ("cuda" if has_gpu else "auto")


def test_a_store_and_its_workers_meet_in_memory_of_their_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = render({"kvstore": {"enabled": True, "settings": {"kv-store-size": 2}}})
    config, size, _ = parse(release, "kvstore", tmp_path, monkeypatch)
    assert (config.worker_id, config.reached_at, config.cache_key) == ("node-7", "10.1.2.3", KEYS["cache_key"])
    assert (size.kv_store_size, config.kv_store) == (2, "/run/kvstore/baton-llm-baton")
    for role in ("prefill", "decode"):
        _engine, worker, *_ = parse(release, role, tmp_path, monkeypatch)
        assert worker.kv_store == config.kv_store
    check_against_the_api(release)
    for role, pod in roles(release).items():
        mounts = [m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == "kvstore"]
        assert mounts == ([] if role == "router" else ["/run/kvstore"])


def test_all_roles_meet_under_one_name_with_one_model(
    release: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router, *_ = parse(release, "router", tmp_path, monkeypatch)
    for role in ("prefill", "decode"):
        engine, worker, *_ = parse(release, role, tmp_path, monkeypatch)
        assert (engine.model or "") == router.model
        assert worker.served_model_name == router.model_names[:1]
        assert (worker.redis_url, worker.cache_key) == (router.redis_url, router.cache_key)


def test_settings_reach_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = render(EVERYTHING)
    router, *_ = parse(release, "router", tmp_path, monkeypatch)
    assert (router.policy, router.drain_s) == ("least-load", 7.5)
    engine, worker, *_ = parse(release, "prefill", tmp_path, monkeypatch)
    assert (engine.max_num_seqs, worker.drain_s) == (8, 120)
    _, worker, _, legs = parse(release, "decode", tmp_path, monkeypatch)
    assert (worker.lease_s, legs) == (20, ["decode", "prefill"])


@pytest.fixture(scope="module")
def known_series() -> dict[str, set[str]]:
    """Return what each role's /metrics has."""
    sources = {
        "router": RouterMetrics("m"),
        "prefill": WorkerMetrics("m"),
        "decode": WorkerMetrics("m"),
        "kvstore": StoreMetrics("m"),
    }
    return {
        role: {sample.name for family in metrics.registry.collect() for sample in family.samples}
        for role, metrics in sources.items()
    }


def test_scaling_asks_for_series_that_exist(known_series: dict[str, set[str]]) -> None:
    release = render(EVERYTHING)
    queries = [
        trigger["metadata"]["query"]
        for each in release.of_kind("ScaledObject").values()
        for trigger in each["spec"]["triggers"]
    ]
    assert len(queries) == 3
    for query in queries:
        ((series, role),) = re.findall(r'(baton:\w+)\{job="(\w+)",namespace="llm"\}', query)
        assert series in known_series[role]
    (monitor,) = release.of_kind("ServiceMonitor").values()
    assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/component"
    for service in release.of_kind("Service").values():
        assert service["metadata"]["labels"]["app.kubernetes.io/component"] in known_series


def test_the_sample_autoscalers_scale_what_the_chart_makes(known_series: dict[str, set[str]]) -> None:
    text = (CHART.parents[1] / "samples/hpa.yaml").read_text()
    scalers = Manifests(list(documents(text)))
    check_against_the_api(scalers)
    targets = {each["spec"]["scaleTargetRef"]["name"] for each in scalers.objects}
    assert targets <= set(render().of_kind("Deployment"))
    queries = re.findall(r'(baton:\w+)\{<<.LabelMatchers>>,job="(\w+)"', text)
    assert len(queries) == 3
    assert all(series in known_series[role] for series, role in queries)
    made = set(re.findall(r"\{as: (\w+)\}", text))
    asked = {m["external"]["metric"]["name"] for each in scalers.objects for m in each["spec"]["metrics"]}
    assert made == asked
