"""Requests made up from the server's own OpenAPI document: does one of them make it fail?

`python -m benchmarks.faults.generated` lets schemathesis make up bodies and names that the document allows, for every
operation, and holds each answer against what the document says of it: status, content type and shape.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks as openapi

from benchmarks.faults.tiny_server import KEY, NAMES, tiny_server
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT, Server

__all__ = ["made_up"]

RESULT = ROOT / "benchmarks" / "results" / "generated" / "result.json"
HELD_AGAINST = [
    checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
]
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
# Routes of typed questions, whose bodies name an adapter as `model`.
TYPED = ("/v1/decisions", "/v1/systemone")


def made_up(server: Server, n_cases: int) -> dict[str, Any]:
    """Return counts of the answers' statuses for each operation, and the first few answers that should not be.

    Args:
        server: one of `tiny_server`.
        n_cases: of predictions; every other operation that takes anything gets a tenth of that.
    """
    document = httpx.get(f"{server.url}/openapi.json", headers=AUTHORIZED).json()
    schema = schemathesis.openapi.from_dict(document)
    statuses: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    operations = [found.ok() for found in schema.get_all_operations()]
    predictions = [one for one in operations if one.path == "/v1/predict"]
    others = [one for one in operations if one.path != "/v1/predict"]
    shares = [(one, n_cases) for one in predictions] + [(one, n_cases // 10) for one in others]
    for operation, count in shares:
        statuses[f"{operation.method.upper()} {operation.path}"] = _ask(operation, count, server.url, wrong)
    total = sum(statuses.values(), Counter())
    return {
        "cases": sum(count for status, count in total.items() if status.isdigit()),
        "server_errors": sum(count for status, count in total.items() if status.startswith("5")),
        "against_the_document": total["against the document"],
        "statuses": {operation: dict(sorted(found.items())) for operation, found in statuses.items()},
        "wrong": wrong,
    }


def _ask(operation: schemathesis.APIOperation, count: int, url: str, wrong: list[str]) -> Counter[str]:
    """Asks many made-up requests; adds the first answers that should not be to `wrong`."""
    found: Counter[str] = Counter()

    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(_cases(operation))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=url, headers=AUTHORIZED, timeout=60)
        found[str(response.status_code)] += 1
        try:
            case.validate_response(response, checks=HELD_AGAINST)
        except FailureGroup as failures:
            found["against the document"] += 1
            if len(wrong) < 10:
                reasons = "; ".join(str(failure) for failure in failures.exceptions)
                wrong.append(f"{case.method} {case.path}: {response.status_code}, {reasons}: {response.text[:500]}")

    ask()
    return found


def _cases(operation: schemathesis.APIOperation) -> st.SearchStrategy[schemathesis.Case]:
    """Return requests that the document allows; half of those with questions name an adapter that is loaded."""
    cases = operation.as_strategy()
    if operation.path in TYPED:
        return st.one_of(cases, cases.map(_to_the_adapter))
    if operation.path != "/v1/predict":
        return cases
    prompts = st.text(min_size=1, max_size=200)
    return st.one_of(cases, st.builds(_answerable, cases, st.sampled_from(NAMES[:1]), st.integers(1, 64), prompts))


def _to_the_adapter(case: schemathesis.Case) -> schemathesis.Case:
    """Return the case with the name of the loaded adapter as its model."""
    case.body["model"] = NAMES[0]
    return case


def _answerable(case: schemathesis.Case, adapter: str, n_samples: int, prompt: str) -> schemathesis.Case:
    """Return the case with a loaded adapter, an allowed number of draws, one question and no empty policy."""
    for body in [*case.body.get("inputs", []), case.body]:
        if body.get("adapter"):
            body["adapter"] = adapter
        if body.get("n_samples"):
            body["n_samples"] = n_samples
        if "inputs" not in body:
            if body.get("messages"):
                body.pop("prompt", None)
            elif not body.get("prompt"):
                body["prompt"] = prompt
        if not any((body.get("policy") or {}).values()):
            body.pop("policy", None)
        elif body["policy"].get("target_risk"):
            del body["policy"]
    return case


def main() -> None:
    """Asks and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tiny_server(Path(name), max_inputs="16") as server:
        result = made_up(server, arguments.cases)
    result |= {
        **about(f"python -m benchmarks.faults.generated --cases {arguments.cases}"),
    }
    write(arguments.json, result)


if __name__ == "__main__":
    main()
