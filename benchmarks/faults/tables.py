"""The tables of docs/faults.md, and of the attacks in docs/security.md, from what servers were put through."""

from typing import Any

from benchmarks.markdown import Columns, markdown_table, on_machine, record_table

__all__ = ["attacks", "churn", "generated", "killed", "memory", "saturation", "together"]

Result = dict[str, Any]

MEMORY_STEP_MIN = 5


def attacks(result: Result) -> str:
    """Return the table of attacks with the expected and the seen outcome."""
    cases, held = result["cases"], result["held"]
    rows = [[case["family"], case["name"], " or ".join(case["expected"]), _seen(case)] for case in cases]
    header = ["family", "what is sent or done", "expected", "seen"]
    n_expected = sum(case["as_expected"] for case in cases)
    n_right = sum(case["afterwards"] == "right" and not case["tracebacks"] for case in cases)
    slowest = max(case["longest_probe_s"] for case in cases)
    left = "; ".join(
        f"{one['family']} {one['handles'][0]} and {one['handles'][1]} open files and sockets, "
        f"{one['memory_mib'][0]:.0f} and {one['memory_mib'][1]:.0f} MiB"
        for one in held
    )
    said = [
        f"{len(cases)} attacks on one server, {n_expected} of them met as expected. After {n_right} of them an honest",
        "client was answered rightly, `/livez` and `/readyz` were 200, and the log had no new traceback; a probe of",
        f"`/livez` meanwhile took {slowest:.1f} s at most. Before and after each family: {left}.",
        _machine(result),
    ]
    return f"{markdown_table(header, rows, n_words=len(header))}\n\n{' '.join(said)}"


def _seen(case: dict[str, Any]) -> str:
    if case["as_expected"]:
        return str(case["seen"])
    return f"**{case['seen']}**; afterwards {case['afterwards']}"


def churn(result: Result) -> str:
    """Return the table of the requests' outcomes, and the server's memory and open files."""
    rows = [[outcome, f"{count:,}"] for outcome, count in sorted(result["outcomes"].items())]
    rows.append(["none", f"{result['without_an_outcome']:,}"])
    memory, handles, near = result["memory_mib"], result["handles"], result["tolerance"]
    said = [
        f"{result['requests']:,} requests in {result['seconds'] / 60:.0f} minutes, by {result['clients']} clients for",
        "four adapters of a tiny random model, of which one was unloaded and loaded again",
        f"{result['reloads']:,} times meanwhile; an answer is right if it has its adapter's digest, and no",
        f"probability is more than {near:g} from what the adapter says alone. Memory",
        f"{memory['early']:.0f} MiB in the second quarter of the time, {memory['late']:.0f} in the last;",
        f"{handles['early']:.0f} open files and sockets, {handles['late']:.0f} in the last. {_machine(result)}",
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
        "document allows, half of the predictions such that there can be an answer, half of the typed questions to an "
        f"adapter that is loaded; {result['server_errors']} answers were 5xx, {result['against_the_document']} not as "
        f"the document says. {_machine(result)}"
    )


def killed(result: Result) -> str:
    """Return the table of what became of the rows."""
    header = ["rows", "written once", "more than once", "never", "with another row's answer"]
    row = [f"{result[name]:,}" for name in ("rows", "once", "more_than_once", "never", "anothers_answer")]
    said = [
        f"`blora predict`, ended by `kill -9` {result['kills']} times and begun again: while it loaded, after a third",
        f"and after two thirds; the rows are {'in order' if result['in_order'] else 'out of order'}.",
        f"{result['rows_per_s']:.0f} rows a second, starts included, of a tiny random model; an",
        f"answer is another's if a probability is {result['tolerance']:g} or more from what an undisturbed run says.",
        f"Memory {result['memory_mib']['middle']:.0f} MiB midway through the last run, at most",
        f"{result['memory_mib']['most']:.0f}. {_machine(result)}",
    ]
    return f"{markdown_table(header, [row])}\n\n{' '.join(said)}"


def _failed(found: dict[str, int]) -> int:
    return sum(count for status, count in found.items() if status.startswith("5"))


def saturation(result: Result) -> str:
    """Clients that wait, and a flood that does not."""
    flooded = result["flooded"]
    rows = [
        [f"{row['clients']} clients, each waits for its answer", "–", *_outcomes(row)]
        for row in result["waiting_clients"]
    ]
    rows.append(["requests at a fixed rate, nobody waits", f"{flooded['asked_per_s']:.1f}", *_outcomes(flooded)])
    header = [
        "who asks",
        "asked a second",
        "answered a second",
        "p50 (s)",
        "p99 (s)",
        "refused, 429",
        "other errors",
        "lost",
    ]
    probes = ", ".join(f"`{what}` {count} times" for what, count in flooded["probes"].items())
    calm = result["calm_after"]
    said = [
        f"Answered under the flood: {result['goodput_ratio']:.0%} of the most without it. Deadline",
        f"{result['timeout_s']:g} s. Probes meanwhile: {probes}. A question after it: {calm['status']} in",
        f"{calm['seconds']:.1f} s. {result['base_model']}, {result['dtype']}, the demo's adapter. {_machine(result)}",
    ]
    return f"{markdown_table(header, rows)}\n\n{' '.join(said)}"


def memory(results: list[Result]) -> str:
    """Return the table of the demo server's memory by minute, in each dtype."""
    n_minutes = min(result["minutes"] for result in results)
    rows = [
        [str(minute + 1), *(f"{result['mib_each_minute'][minute]:.0f}" for result in results)]
        for minute in range(n_minutes)
        if (minute + 1) % MEMORY_STEP_MIN == 0
    ]
    header = ["minute", *(f"{result['dtype']} (MiB)" for result in results)]
    slopes = "; ".join(
        f"{result['dtype']} {result['slope_mib_per_minute']:+.2f} ± {result['slope_error']:.2f} MiB a minute after "
        f"{result['requests']:,} requests in all"
        for result in results
    )
    return (
        f"{markdown_table(header, rows)}\n\nSlope of the last half, ± standard error: {slopes}. {_machine(results[0])}"
    )


def together(result: Result) -> str:
    """One key's questions on an idle server, and beside another key's worst."""
    columns: Columns = {
        "": "{shown}",
        "questions": "{questions}",
        "median (s)": "{median_s:.2f}",
        "p99 (s)": "{p99_s:.2f}",
        "worst `/livez` (s)": "{livez_worst_s:.2f}",
        "not answered": lambda found: str(len(found["failures"])),
    }
    shown = {"nobody else asks": result["idle"], "beside the attack": result["beside"]}
    said = (
        f"p99 beside the attack is {result['ratio_of_p99']:.2f} times that of an idle server. The attack came "
        f"{result['volleys']} times, every {result['volley_every_s']:.0f} s. {_machine(result)}"
    )
    return f"{record_table([found | {'shown': name} for name, found in shown.items()], columns)}\n\n{said}"


def _outcomes(row: dict[str, Any]) -> list[str]:
    """Return speed, latencies, refusals, other errors and lost connections."""
    speed = [f"{row[name]:.1f}" for name in ("answers_per_s", "p50_s", "p99_s")]
    others = sum(n for status, n in row["statuses"].items() if status not in ("200", "429"))
    return [*speed, f"{row['statuses'].get('429', 0):,}", f"{others:,}", f"{row['lost']:,}"]


def _machine(result: Result) -> str:
    return f"{on_machine(result['machine'])}, revision {result['revision']}."
