"""The Grafana dashboard, made from the list of what somebody on call wants to see.

`python deploy/dashboard.py` writes deploy/grafana/dashboards/blora.json; a test holds the file against the list, and
asks a Prometheus that scraped a loaded server for every expression.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blora.scores import SCORES

FILE = Path(__file__).resolve().parent / "grafana" / "dashboards" / "blora.json"

# What Grafana fills in: the scrape-aware window of a rate, and the chosen namespaces, servers and adapters. Every
# process that Prometheus scrapes has metrics of its process, so that those need the job's name.
WINDOW = "$__rate_interval"
WHERE = 'namespace=~"$namespace",instance=~"$instance"'
OURS = f'job="blora",{WHERE}'
OF = f'adapter=~"$adapter",{WHERE}'


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: what it shows.
        unit: of its axis, by Grafana's name.
        queries: pairs of an expression and the legend of its series.
        kind: how it looks; a heatmap is that of one histogram over time.
    """

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    kind: Literal["timeseries", "heatmap", "table", "stat"] = "timeseries"


def _rate(metric: str, by: str, where: str = WHERE) -> str:
    return f"sum by ({by}) (rate({metric}{{{where}}}[{WINDOW}]))"


def _quantile(q: float, metric: str) -> str:
    return f"histogram_quantile({q}, {_rate(f'{metric}_bucket', 'le')})"


def _mean(metric: str) -> str:
    return f"{_rate(f'{metric}_sum', 'instance')} / {_rate(f'{metric}_count', 'instance')}"


def _share(part: str, whole: str, by: str, where: str) -> str:
    """Of the inputs with some outcomes, those with others; 0 where there are none of these."""
    some = _rate("blora_requests_total", by, f'outcome=~"{part}",{where}')
    every = _rate("blora_requests_total", by, f'outcome=~"{whole}",{where}')
    return f"({some} or 0 * {every}) / {every}"


def _told() -> str:
    """Of a week's answers under a promise whose outcome was asked for, those whose outcome was reported."""
    told, asked = (
        f'sum by (adapter, target_risk) (increase({metric}{{requested="true",{OF}}}[7d]))'
        for metric in ("blora_outcomes_total", "blora_promised_answers_total")
    )
    return f"{told} / {asked}"


def _unfamiliar() -> str:
    """Of the answers with a familiarity, those to unfamiliar questions."""
    return " / ".join(_rate(metric, "adapter", OF) for metric in ("blora_unfamiliar_total", "blora_familiarity_count"))


_OURS = "model_failure|engine_unreachable|non_finite|internal_error|deadline_exceeded"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Traffic": (
        Panel("Inputs by outcome", "reqps", [(_rate("blora_requests_total", "outcome"), "{{outcome}}")]),
        Panel(
            "Share of abstentions, by adapter",
            "percentunit",
            [(_share("abstained", "answered|abstained", "adapter", OF), "{{adapter}}")],
        ),
        Panel(
            "Withheld, by reason",
            "reqps",
            [(_rate("blora_abstentions_total", "adapter, reason", OF), "{{adapter}}: {{reason}}")],
        ),
        Panel(
            "Share that failed by the server's fault",
            "percentunit",
            [(_share(_OURS, f"answered|abstained|{_OURS}", "instance", WHERE), "{{instance}}")],
        ),
    ),
    "Time": (
        Panel(
            "From arrival to answer",
            "s",
            [(_quantile(q, "blora_request_seconds"), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)],
        ),
        Panel(
            "Where it goes, p95",
            "s",
            [
                (_quantile(0.95, f"blora_{stage}_seconds"), name)
                for stage, name in (("queue", "queue"), ("forward", "forward pass"))
            ],
        ),
        Panel("Backlog", "s", [(f"blora_backlog_seconds{{{WHERE}}}", "{{instance}}")]),
        Panel("Inputs waiting", "short", [(f"blora_queue_depth{{{WHERE}}}", "{{instance}}")]),
        Panel("Dropped from the queue", "reqps", [(_rate("blora_dropped_total", "reason"), "{{reason}}")]),
    ),
    "Forward passes": (
        Panel("Inputs in one, mean", "short", [(_mean("blora_batch_rows"), "{{instance}}")]),
        Panel("Padded tokens x draws in one, mean", "short", [(_mean("blora_batch_tokens"), "{{instance}}")]),
        Panel("Draws behind an answer, mean", "short", [(_mean("blora_samples_per_request"), "{{instance}}")]),
        Panel("NaN or infinity", "short", [(f"increase(blora_non_finite_total{{{OF}}}[{WINDOW}])", "{{adapter}}")]),
    ),
    "Uncertainty": tuple(
        Panel(
            score.title.capitalize() + (f" ({score.unit})" if score.unit else ""),
            "short" if score.unit else "percentunit",
            [(_rate(f"{score.metric}_bucket", "le", OF), "{{le}}")],
            "heatmap",
        )
        for score in SCORES.values()
    ),
    "Trust": (
        Panel(
            "Share of unfamiliar questions",
            "percentunit",
            [(_unfamiliar(), "{{adapter}}")],
        ),
        Panel(
            "Evidence of drift (alarm at 20)",
            "short",
            [(f"max by (adapter) (blora_drift_wealth{{{OF}}})", "{{adapter}}")],
        ),
        Panel(
            "Realised risk, and what it certainly exceeds",
            "percentunit",
            [
                (
                    f"max by (adapter, target_risk) (blora_realised_risk{{{OF}}})",
                    "{{adapter}}: {{target_risk}} promised",
                ),
                (
                    f"max by (adapter, target_risk) (blora_realised_risk_lower_bound{{{OF}}})",
                    "{{adapter}}: {{target_risk}} promised, at least",
                ),
            ],
        ),
        Panel(
            "Share of requested outcomes that were reported",
            "percentunit",
            [(_told(), "{{adapter}}: {{target_risk}} promised")],
        ),
        Panel(
            "Outcomes reported, and answers that cannot have one",
            "reqps",
            [
                (_rate("blora_outcomes_total", "adapter, outcome", OF), "{{adapter}}: {{outcome}}"),
                (
                    _rate("blora_outcome_corrections_total", "adapter, outcome", OF),
                    "{{adapter}}: corrected to {{outcome}}",
                ),
                (_rate("blora_unstored_predictions_total", "instance"), "{{instance}}: answers not stored"),
            ],
        ),
        Panel(
            "Promises broken",
            "short",
            [(f"sum(max by (adapter, target_risk) (blora_promise_broken{{{OF}}}))", "broken")],
            "stat",
        ),
    ),
    "Process": (
        Panel("Memory", "bytes", [(f"process_resident_memory_bytes{{{OURS}}}", "{{instance}}")]),
        Panel("Cores in use", "short", [(f"rate(process_cpu_seconds_total{{{OURS}}}[{WINDOW}])", "{{instance}}")]),
        Panel(
            "Open files and sockets, of those allowed",
            "percentunit",
            [(f"process_open_fds{{{OURS}}} / process_max_fds{{{OURS}}}", "{{instance}}")],
        ),
        Panel("Running for", "s", [(f"time() - process_start_time_seconds{{{OURS}}}", "{{instance}}")]),
    ),
    "Fleet": (
        Panel("Servers up", "short", [(f'sum(up{{job="blora",{WHERE}}})', "up")], "stat"),
        Panel("Shared layers run once", "short", [(f"sum(blora_model_runs_in_parts{{{WHERE}}})", "")], "stat"),
        Panel("Builds", "short", [(f"count by (version, revision) (blora_build_info{{{WHERE}}})", "")], "table"),
        Panel("Adapters", "short", [(f"count by (adapter, digest) (blora_adapter_info{{{OF}}})", "")], "table"),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"type": "row", "id": len(panels) + 1, "title": title, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}
        )
        width = 24 // len(row)
        for place, panel in enumerate(row):
            grid = {"x": place * width, "y": y + 1, "w": width, "h": 8}
            panels.append(_panel(panel, len(panels) + 1, grid))
        y += 9
    return {
        "uid": "blora",
        "title": "blora",
        "tags": ["blora"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("namespace", "blora_build_info", "namespace"),
                _variable("instance", 'blora_build_info{namespace=~"$namespace"}', "instance"),
                _variable("adapter", f"blora_adapter_info{{{WHERE}}}", "adapter"),
            ]
        },
        "panels": panels,
    }


_SOURCE = {"type": "prometheus", "uid": "$source"}


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, Any]:
    form = {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series")
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "gridPos": grid,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + k),
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "format": form,
                "instant": panel.kind == "table",
            }
            for k, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _variable(name: str, metric: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({metric}, {label})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
