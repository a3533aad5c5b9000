"""The page of the server's metrics, from their definitions."""

from prometheus_client.metrics import MetricWrapperBase

from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import ServerMetrics
from docs.site.python_reference import NOTE, cell

__all__ = ["metrics_page"]

ABOUT = """\
`GET /metrics` has them in Prometheus' text format. A histogram `NAME` has the series `NAME_bucket`, `NAME_count` and
`NAME_sum`. The label `adapter` is the name of a served adapter, or `unknown` for requests that reach none; `outcome` of
`blora_requests_total` is `answered`, `abstained`, `sibling_failed` or the code of an [error](http.md#errors);
`target_risk` is the promised risk. No label contains a request's text. The metrics of the process, such as
`process_resident_memory_bytes`, are those of the Prometheus client for Python.

[Alerts](../deploy.md#alerts) and the dashboard are built on these metrics.
"""


def metrics_page() -> str:
    """Return the page of all metrics."""
    registry = ServerMetrics(Build("0", "0"))._registry
    rows = ["| metric | type | labels | meaning |\n|---|---|---|---|"]
    metrics = [metric for metric in registry._collector_to_names if isinstance(metric, MetricWrapperBase)]
    for metric in sorted(metrics, key=lambda metric: metric._name):
        name = f"{metric._name}_total" if metric._type == "counter" else metric._name
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)
        rows.append(f"| `{name}` | {metric._type} | {labels} | {cell(metric._documentation)} |")
    return "\n".join(["# Metrics\n", NOTE, ABOUT, *rows]) + "\n"
