"""Write what documents and manifests take from the code: `make docs`, or `python docs/generate.py`.

    *.md                              tables of flags and metrics, between <!-- table: … --> and <!-- end -->
    deploy/helm/baton/values.schema.json    the flags that `settings` may hold
    deploy/kustomize/base/            the chart, rendered with its defaults

`--check` writes nothing and names what is stale.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from baton.config import EngineConfig
from baton.kvtransfer.settings import TransferConfig
from baton.metrics import RouterMetrics, WorkerMetrics
from baton.router.config import RouterConfig
from baton.up_config import UpConfig
from baton.vllm_names import ARGUMENTS, EMPTY, FLAGS, METHODS, SAMPLING, Name
from baton.worker.settings import WorkerConfig

ROOT = Path(__file__).parent.parent
PAGES = (
    "docs/operators.md",
    "docs/coming-from-vllm.md",
    *(f"services/{name}/README.md" for name in ("router", "prefill", "decode", "kvtransfer")),
)
CHART = ROOT / "deploy/helm/baton"
BASE = ROOT / "deploy/kustomize/base"
_TABLE = re.compile(r"(<!-- table: (?P<what>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)

CHART_OWNS = frozenset(
    (
        *("model", "served_model_name", "worker_id", "host", "announce_host", "port", "control_port", "kv_port"),
        *("redis_url", "redis_password", "api_key", "cache_key"),
        *("curve_public_key", "curve_secret_key", "curve_server_key"),
    )
)
"""Settings that the chart sets itself, from its own values or the Secret."""


def outputs() -> Iterator[tuple[Path, str]]:
    """Return each file with what it has to hold."""
    for page in PAGES:
        yield ROOT / page, fill_tables((ROOT / page).read_text())
    schema = CHART / "values.schema.json"
    yield schema, fill_schema(schema.read_text())
    yield from base_manifests()


# -- tables ---------------------------------------------------------------------------------------------------


def fill_tables(page: str) -> str:
    """Return a page with its tables made anew."""
    return _TABLE.sub(lambda match: f"{match[1]}{_table(match['what'])}\n{match[3]}", page)


def _table(what: str) -> str:
    kind, name, *prefixes = what.split()
    return {"flags": flags_table, "settings": settings_table, "metrics": metrics_table, "vllm": vllm_table}[kind](
        name, *prefixes
    )


_SETTINGS: dict[str, Any] = {
    "up": UpConfig,
    "router": RouterConfig,
    "worker": WorkerConfig,
    "engine": EngineConfig,
    "transfer": TransferConfig,
}


def flags_table(name: str) -> str:
    """Return a table of a command's flags."""
    rows = []
    hints = get_type_hints(_SETTINGS[name])
    for field in dataclasses.fields(_SETTINGS[name]):
        flag = field.name.replace("_", "-")
        shown = f"`--[no-]{flag}`" if isinstance(field.default, bool) else f"`--{flag}`"
        rows.append((shown, _default(field.default), _help(field, hints[field.name])))
    return _rows(("flag", "default", ""), rows)


def _help(field: dataclasses.Field[Any], hint: Any) -> str:
    """Return a field's help, with its choices if that does not name them."""
    text: str = field.metadata["help"]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    return text if all(choice in text for choice in choices) else f"{text} ({', '.join(choices)})"


def settings_table(name: str) -> str:
    """Return a table of settings that are no flags."""
    fields = dataclasses.fields(_SETTINGS[name])
    return _rows(("setting", "default", ""), [(f"`{f.name}`", _default(f.default), f.metadata["help"]) for f in fields])


def metrics_table(name: str, *prefixes: str) -> str:
    """Return a table of what a router or a worker counts; of the series that begin so, if prefixes are given."""
    registry = {"router": RouterMetrics, "worker": WorkerMetrics}[name]("m").registry
    families = list(registry.collect())
    also = {family.name.replace("vllm:", "baton:") for family in families if family.name.startswith("vllm:")}
    unused = {series: collector for collector, names in registry._collector_to_names.items() for series in names}
    rows = []
    for family in sorted(families, key=lambda f: f.name):
        if not family.name.startswith(tuple(f"baton:{prefix}" for prefix in prefixes or ("",))):
            continue
        # A series whose labels have no value yet gives no sample, but knows their names.
        labels = list(family.samples[0].labels) if family.samples else getattr(unused[family.name], "_labelnames", ())
        own = ",".join(label for label in labels if label not in ("model_name", "le"))
        shown = family.name + ("_total" if family.type == "counter" else "") + (f"{{{own}}}" if own else "")
        rows.append((f"`{shown}`", family.type, family.documentation, "yes" if family.name in also else ""))
    return _rows(("series", "type", "", "vLLM's name too"), rows)


def vllm_table(name: str) -> str:
    """Return a table of vLLM's names: each sentence of the table in the code, with its names."""
    table = {"flags": FLAGS, "arguments": ARGUMENTS, "sampling": SAMPLING, "methods": METHODS}[name]
    said: dict[str, tuple[list[str], list[str]]] = {}
    for each in table.values():
        if name == "arguments" and FLAGS.get(each.name) == each:
            continue  # it stands in the table of flags
        if each.kind == "taken" and each.ours == each.name:
            says = "Taken, under the same name."
        else:
            says = f"Taken, as `{each.ours}`." if each.kind == "taken" else each.says
        neutral, refused = said.setdefault(says, ([], []))
        (refused if each.kind == "refused" else neutral).append(_vllm_name(name, each))
    rows = [(says, ", ".join(neutral), ", ".join(refused)) for says, (neutral, refused) in said.items()]
    return _rows(("here", "taken", "refused, unless"), rows)


def _vllm_name(table: str, name: Name) -> str:
    shown = f"--{name.name.replace('_', '-')}" if table == "flags" else name.name
    values = sorted(name.values - EMPTY)
    return f"`{shown}`" + (f" ({' or '.join(values)})" if values and name.kind == "refused" else "")


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _default(value: Any) -> str:
    if value is None or value == "" or value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        f"{value:,}"
        if isinstance(value, int) and value >= 100_000
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


# -- the chart's schema ---------------------------------------------------------------------------------------


def fill_schema(schema: str) -> str:
    """Return the chart's schema with the flags of each role made anew."""
    whole = json.loads(schema)
    worker = _properties(EngineConfig) | _properties(WorkerConfig)
    also_prefill = {"also-prefill": {"type": "boolean", "description": "serve prompts for other decode workers too"}}
    whole["definitions"] |= {
        "routerSettings": _closed(_properties(RouterConfig)),
        "prefillSettings": _closed(worker),
        "decodeSettings": _closed(worker | also_prefill),
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
