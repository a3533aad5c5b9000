"""The tables of docs/faults.md, from the results of what a server was put through."""

from typing import Any

from benchmarks.markdown import markdown_table

__all__ = ["churn", "generated", "saturation"]

Result = dict[str, Any]


def churn(result: Result) -> str:
    """What became of the requests, and what the server held."""
    rows = [[outcome, f"{count:,}"] for outcome, count in sorted(result["outcomes"].items())]
    rows.append(["none", f"{result['without_an_outcome']:,}"])
    memory, handles, near = result["memory_mib"], result["handles"], result["tolerance"]
    said = [
        f"{result['requests']:,} requests in {result['seconds'] / 60:.0f} minutes, by {result['clients']} clients for",
        "four adapters of a tiny random model, of which one was unloaded and loaded again",
        f"{result['reloads']:,} times meanwhile; an answer is its own if its digest is, and no probability is more",
        f"than {near:g} from what the adapter says alone. Memory {memory['early']:.0f} MiB in the second",
        f"quarter of the time, {memory['late']:.0f} in the last; {handles['early']:.0f} open files and sockets,",
        f"{handles['late']:.0f} in the last. {_machine(result)}",
    ]
    return f"{markdown_table(['outcome', 'requests'], rows)}\n\n{' '.join(said)}"


def generated(result: Result) -> str:
    """Statuses of each operation."""
    shown = sorted(
        {status for found in result["statuses"].values() for status in found if status.isdigit() and status < "500"}
    )
    rows = [
        [f"`{operation}`", *(f"{found.get(status, 0):,}" for status in shown), str(_failed(found))]
        for operation, found in result["statuses"].items()
    ]
    return (
        f"{markdown_table(['operation', *shown, '5xx'], rows)}\n\n{result['cases']:,} requests that the "
        f"document allows, half of the predictions such that there can be an answer; {result['server_errors']} answers "
        f"were 5xx, {result['against_the_document']} not as the document says. {_machine(result)}"
    )


def _failed(found: dict[str, int]) -> int:
    return sum(count for status, count in found.items() if status.startswith("5"))


def saturation(result: Result) -> str:
    """Clients that wait, and a flood that does not."""
    flooded = result["flooded"]
    rows = [[f"{row['clients']} clients, each waits", "–", *_speed(row), "0", "0"] for row in result["waiting_clients"]]
    refused = flooded["statuses"].get("429", 0)
    others = sum(n for status, n in flooded["statuses"].items() if status not in ("200", "429"))
    rows.append(["nobody waits", f"{flooded['asked_per_s']:.1f}", *_speed(flooded), f"{refused:,}", str(others)])
    header = ["who asks", "asked a second", "answered a second", "p50 (s)", "p99 (s)", "refused, 429", "other errors"]
    probes = ", ".join(f"`{what}` {count} times" for what, count in flooded["probes"].items())
    calm = result["calm_after"]
    said = [
        f"Answered under the flood: {result['goodput_ratio']:.0%} of the most without it. Deadline",
        f"{result['timeout_s']:g} s. Probes meanwhile: {probes}. A question after it: {calm['status']} in",
        f"{calm['seconds']:.1f} s. {result['base_model']}, {result['dtype']}, the demo's adapter. {_machine(result)}",
    ]
    return f"{markdown_table(header, rows)}\n\n{' '.join(said)}"


def _speed(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.1f}" for name in ("answers_per_s", "p50_s", "p99_s")]


def _machine(result: Result) -> str:
    machine = result["machine"]
    return f"{machine['cores']} cores of {machine['processor']}, revision {result['revision']}."
