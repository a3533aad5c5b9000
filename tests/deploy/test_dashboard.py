"""The dashboard: it is what its list says, shows every metric, and each of its expressions has data behind it."""

import asyncio
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server_process import ROOT
from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import ServerMetrics
from tests.prometheus import needs_prometheus, query, scraping
from tests.server.commands.test_shutdown import Listening, listening, queued
from tests.server.fakes import FakeEngine
from tests.server.monitoring.test_drift import GATED


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_dashboard", ROOT / "deploy" / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expressions() -> list[str]:
    """All that the committed file asks, with what Grafana would fill in."""
    panels = json.loads(load().FILE.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    filled = {"$__rate_interval": "30s", "$namespace": ".*", "$instance": ".*", "$adapter": ".*"}
    return [re.sub(r"\$\w+", lambda found: filled[found.group()], expression) for expression in asked]


def test_the_file_is_made_from_the_list() -> None:
    module = load()
    assert json.loads(module.FILE.read_text()) == module.dashboard()


def test_it_shows_every_metric() -> None:
    families = text_string_to_metric_families(ServerMetrics(Build.current()).render().decode())
    asked = " ".join(expressions())
    known = {family.name for family in families}
    known.remove("process_virtual_memory_bytes")  # comes with the others, and says nothing of a process that maps files
    assert {name for name in known if name not in asked} == set()


def test_each_selector_holds_to_the_chosen_namespaces() -> None:
    panels = load().dashboard()["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for selector in re.findall(r"\w+\{([^}]*)\}", " ".join(asked)):
        assert 'namespace=~"$namespace"' in selector


def test_panels_have_places_of_their_own() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in load().dashboard()["panels"]]
    covered = [(x + dx, y + dy) for x, y, w, h in places for dx in range(w) for dy in range(h)]
    assert len(covered) == len(set(covered))
    assert max(x for x, _ in covered) < 24


def test_grafana_finds_it_and_its_prometheus() -> None:
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    provisioned = ROOT / "deploy/grafana/provisioning"
    [provider] = yaml.safe_load((provisioned / "dashboards/blora.yaml").read_text())["providers"]
    [source] = yaml.safe_load((provisioned / "datasources/prometheus.yaml").read_text())["datasources"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services


async def be_busy(server: Listening, about: str) -> None:
    """Something of everything that is counted, with texts of its own."""
    answers = await asyncio.gather(*(server.ask(f"p=0.{50 + k % 50} f=0.{k % 10} {about}") for k in range(250)))
    for k, response in enumerate(answers):
        answer = response.json()
        if not answer["abstained"]:
            for label in ["billing"] if k % 3 else ["technical", "billing"] if k % 2 else ["technical"]:
                told = {"prediction_id": answer["id"], "label": label}
                await server.client.post("/v1/feedback", json=told)
    await asyncio.gather(*(server.ask(word) for word in ("NAN", "POISON", "UNPACKABLE")))


@needs_prometheus
async def test_every_expression_has_data(tmp_path: Path) -> None:
    engine = FakeEngine(handles=(GATED,))
    async with listening(engine) as server:
        with scraping(str(server.client.base_url).rstrip("/"), tmp_path) as prometheus:
            await asyncio.to_thread(query, prometheus, "blora_build_info")
            await be_busy(server, "first")
            await asyncio.sleep(2.5)  # a series is first seen, and then grows
            await be_busy(server, "then")
            engine.gate.clear()
            engine.computing.clear()
            waiting = [server.ask("p=0.9 f=0.5")]
            await engine.computing.wait()
            waiting += [server.ask("p=0.9 f=0.5") for _ in range(4)]
            await queued(server, 4)
            waiting.pop().cancel()
            await queued(server, 3)
            await asyncio.sleep(2.5)
            engine.gate.set()
            for expression in expressions():
                samples = await asyncio.to_thread(query, prometheus, expression, 20)
                assert all(sample["value"][1] != "NaN" for sample in samples), expression
            await asyncio.gather(*waiting)
