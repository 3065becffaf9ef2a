"""Write what documents and manifests take from the code: `make docs`, or `python docs/generate.py`.

    *.md                              tables between <!-- table: … --> and <!-- end -->
    docs/images/                      charts of what was measured, and what a terminal shows
    deploy/helm/baton/values.schema.json    the flags that `settings` may hold
    deploy/kustomize/base/            the chart, rendered with its defaults

`--check` writes nothing and names what is stale.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).parent.parent))  # to be run as a file too

from docs import (
    api_tables,
    charts,
    command_tables,
    conformance_tables,
    model_tables,
    python_tables,
    serving_tables,
    terminal,
    vllm_tables,
)
from docs.markdown import default, rows

from baton.config import EngineConfig
from baton.kvtransfer.settings import TransferConfig
from baton.kvtransfer.store.settings import StoreConfig, StoreSize
from baton.logs import LogConfig
from baton.metrics import RouterMetrics, StoreMetrics, WorkerMetrics
from baton.router.config import RouterConfig
from baton.router.http_config import HttpConfig
from baton.router.openai.parsers.strict_calls import BARE, STRICT_FORMS
from baton.router.openai.parsers.tool_forms import TOOL_PARSERS
from baton.router.vllm_series import LEFT_OUT, Seen, VllmSeries
from baton.worker.settings import WorkerConfig

ROOT = Path(__file__).parent.parent
CHART = ROOT / "deploy/helm/baton"
BASE = ROOT / "deploy/kustomize/base"
_TABLE = re.compile(r"(<!-- table: (?P<what>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)

CHART_OWNS = frozenset(
    (
        *("model", "served_model_name", "worker_id", "host", "announce_host", "port", "control_port", "kv_port"),
        *("redis_url", "redis_password", "api_key", "cache_key", "kv_store"),
        *("curve_public_key", "curve_secret_key", "curve_server_key"),
        *("allow_anonymous", "uds", "control_uds", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs"),
    )
)
"""Settings that the chart sets itself, from its own values or the Secret; or that its pods do without."""


def pages() -> list[Path]:
    """Name the pages that hold a table."""
    return sorted(page for page in [*ROOT.glob("docs/*.md"), *ROOT.glob("services/*/README.md")] if _holds_table(page))


def _holds_table(page: Path) -> bool:
    return _TABLE.search(page.read_text()) is not None


def outputs() -> Iterator[tuple[Path, str]]:
    """Return each file with what it has to hold."""
    for page in pages():
        yield page, fill_tables(page.read_text())
    for name, chart in charts.charts().items():
        yield ROOT / "docs/images" / name, chart
    yield ROOT / "docs/images/up-help.svg", terminal.help_picture()
    schema = CHART / "values.schema.json"
    yield schema, fill_schema(schema.read_text())
    yield from base_manifests()


# -- tables ---------------------------------------------------------------------------------------------------


def fill_tables(page: str) -> str:
    """Return a page with its tables made anew."""
    return _TABLE.sub(lambda match: f"{match[1]}{_table(*match['what'].split())}\n{match[3]}", page)


def _table(kind: str, *names: str) -> str:
    return _TABLES[kind](*names)


def settings_table(name: str) -> str:
    """Return a table of settings that are no flags."""
    fields = dataclasses.fields({"transfer": TransferConfig}[name])
    return rows(("setting", "default", ""), [(f"`{f.name}`", default(f.default), f.metadata["help"]) for f in fields])


def metrics_table(name: str) -> str:
    """Return a table of what a router, a worker or a store counts, or of what a router shows under vLLM's names."""
    if name == "left-out":
        return rows(("series of vLLM", "why not"), [(f"`{names}`", why) for names, why in LEFT_OUT])
    metrics = {"router": RouterMetrics, "worker": WorkerMetrics, "store": StoreMetrics, "vllm": RouterMetrics}[name](
        "m"
    )
    if isinstance(metrics, RouterMetrics) and name == "vllm":
        VllmSeries(metrics).seen = Seen(block_size=16, is_awake=True)
    registry = metrics.registry
    unused = {series: collector for collector, names in registry._collector_to_names.items() for series in names}
    lines = []
    for family in sorted(registry.collect(), key=lambda f: f.name):
        if family.name.startswith("baton:") == (name == "vllm"):
            continue
        # A series whose labels have no value yet gives no sample, but knows their names.
        labels = (
            list(family.samples[0].labels) if family.samples else getattr(unused.get(family.name), "_labelnames", ())
        )
        own = ",".join(label for label in labels if label not in ("model_name", "engine", "le"))
        shown = family.name + ("_total" if family.type == "counter" else "") + (f"{{{own}}}" if own else "")
        lines.append((f"`{shown}`", family.type, family.documentation))
    return rows(("series", "type", ""), lines)


def strict_table() -> str:
    """Return what `strict` of a function binds where the model decides, by parser."""
    kinds = (
        ("all of `parameters`", [name for name in STRICT_FORMS if name not in BARE]),
        (
            "names, order, which are required, words of an `enum`, and all of values that are no strings; strings stand "
            "bare, and are free",
            [name for name in STRICT_FORMS if name in BARE],
        ),
        ("nothing: check what comes, or force the call", [name for name in TOOL_PARSERS if name not in STRICT_FORMS]),
    )
    return rows(
        ("what `strict` binds", "`--tool-call-parser`"),
        [(kind, ", ".join(f"`{n}`" for n in each)) for kind, each in kinds],
    )


_TABLES: dict[str, Callable[..., str]] = {
    "settings": settings_table,
    "request": api_tables.request_table,
    "refused-of": api_tables.refused_of,
    "strict": strict_table,
    "metrics": metrics_table,
    "commands": command_tables.commands,
    "environment": command_tables.environment,
    "routes": api_tables.routes_table,
    "bodies": api_tables.bodies,
    "refused-fields": api_tables.refused_table,
    "conformance": conformance_tables.conformance_table,
    "models": model_tables.models_table,
    "quantized": model_tables.quantized_table,
    "sampling": python_tables.sampling_table,
    "output": python_tables.output_table,
    "vllm": vllm_tables.vllm_table,
    "serving": serving_tables.serving_table,
}


# -- the chart's schema ---------------------------------------------------------------------------------------


def fill_schema(schema: str) -> str:
    """Return the chart's schema with the flags of each role made anew."""
    whole = json.loads(schema)
    worker = _properties(EngineConfig) | _properties(WorkerConfig) | _properties(LogConfig)
    also_prefill = {"also-prefill": {"type": "boolean", "description": "serve prompts for other decode workers too"}}
    whole["definitions"] |= {
        "routerSettings": _closed(_properties(RouterConfig) | _properties(HttpConfig) | _properties(LogConfig)),
        "prefillSettings": _closed(worker),
        "decodeSettings": _closed(worker | also_prefill),
        "kvstoreSettings": _closed(_properties(StoreConfig) | _properties(StoreSize) | _properties(LogConfig)),
    }
    return json.dumps(whole, indent=2) + "\n"


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(properties.items()))}


def _properties(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {
        field.name.replace("_", "-"): {**_json_type(hints[field.name]), "description": field.metadata["help"]}
        for field in dataclasses.fields(kind)
        if field.name not in CHART_OWNS
    }


def _json_type(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _json_type(get_args(hint)[0])}
    return {"type": {bool: "boolean", int: "integer", float: "number", str: "string"}[hint]}


# -- plain manifests ------------------------------------------------------------------------------------------


def base_manifests() -> Iterator[tuple[Path, str]]:
    """Return the files of the kustomize base: the chart's templates, rendered with its defaults."""
    from helm_python import Chart

    with Chart.load(CHART) as chart:
        rendered = chart.render(name="baton", namespace="default")
    resources = []
    for template, text in sorted(rendered.items()):
        if template.endswith(".yaml") and "kind:" in text:
            resources.append(Path(template).name)
            lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()]
            yield (BASE / resources[-1], "\n".join(["# Made from deploy/helm/baton by `make docs`.", *lines, ""]))
    listed = "\n".join(f"  - {name}" for name in resources)
    yield (
        BASE / "kustomization.yaml",
        "# Made from deploy/helm/baton by `make docs`.\n"
        f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{listed}\n",
    )


def stale() -> list[Path]:
    """Name the files that do not hold what they have to."""
    return [path for path, text in outputs() if not path.exists() or path.read_text() != text]


def main() -> int:
    """Write the files, or with --check name the stale ones; return the exit status."""
    if sys.argv[1:] == ["--check"]:
        for path in (found := stale()):
            print(f"{path.relative_to(ROOT)} is stale: run `make docs`", file=sys.stderr)
        return 1 if found else 0
    for path, text in outputs():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
