"""Build the triage data set from the hand-written sentences in ``tickets/``.

``python examples/triage/build.py`` writes ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``,
``comparison.jsonl``, ``proof.jsonl`` and ``out_of_scope.jsonl`` beside this file, the tickets with urgency
and mood into ``moods/``, and the counts into README.md. Standard library only. The seed is fixed, so the same
sentences always give the same bytes. The split is stratified: each queue's clear tickets and each
pair of queues' ambiguous tickets are divided in the same proportions. Training tickets are the
first and the third part of the split, and the tickets written later; the held-out ones validate
and test.
"""

from __future__ import annotations

import json
import random
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TICKETS = HERE / "tickets"
SEED = 20
QUEUES = (
    "billing",
    "account access",
    "bug report",
    "feature request",
    "data export",
    "security",
    "cancellation",
)
# Shares of every stratum; the test file takes what the others leave.
SHARES = (("train", 0.50), ("validation", 0.11), ("more_train", 0.25), ("test", 0.14))

# Tickets that validate: of either held-out file, whose others test, and of moods.tsv, whose others train.
N_HELD_VALIDATION, N_MOODS_VALIDATION = 300, 100
MOODS = ("calm", "annoyed", "angry")
BEGIN, END = "<!-- counts -->\n", "<!-- end -->"

Ticket = dict[str, Any]


def lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file, stripped."""
    text = path.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def normal(text: str) -> str:
    """Return the text without case, punctuation and repeated spaces, to find duplicates."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split())


def refuse_duplicates(texts: list[str]) -> None:
    """Stop when two tickets differ in nothing but case, punctuation or spaces."""
    seen: dict[str, str] = {}
    for text in texts:
        key = normal(text)
        if key in seen:
            sys.exit(f"duplicate ticket: {text!r} and {seen[key]!r}")
        seen[key] = text


def read_clear() -> dict[str, list[Ticket]]:
    """Return the clear tickets of each queue."""
    strata: dict[str, list[Ticket]] = {}
    for queue in QUEUES:
        path = TICKETS / f"{queue.replace(' ', '_')}.txt"
        strata[queue] = [{"prompt": text, "label": queue, "ambiguous": False} for text in lines(path)]
    return strata


def read_ambiguous() -> dict[str, list[Ticket]]:
    """Return the ambiguous tickets of each pair of queues, not labelled yet."""
    strata: dict[str, list[Ticket]] = defaultdict(list)
    for line in lines(TICKETS / "ambiguous.tsv"):
        first, second, text = line.split("\t")
        # An unknown queue raises ValueError here.
        pair = sorted((first, second), key=QUEUES.index)
        if first == second:
            sys.exit(f"an ambiguous ticket needs two different queues: {text!r}")
        strata[" / ".join(pair)].append({"prompt": text, "ambiguous": True, "queues": pair})
    return dict(strata)


def read_mixed(name: str, rng: random.Random) -> list[Ticket]:
    """Return the tickets of a file that holds clear and ambiguous ones; what stands between queues and text is left."""
    tickets: list[Ticket] = []
    for line in lines(TICKETS / name):
        named, *_, text = line.split("\t")
        queues = sorted(named.split(" / "), key=QUEUES.index)
        ticket: Ticket = {"prompt": text, "label": rng.choice(queues), "ambiguous": len(queues) > 1}
        tickets.append(ticket | ({"queues": queues} if len(queues) > 1 else {}))
    return tickets


def read_moods(name: str) -> list[Ticket]:
    """Return the tickets of a file with urgency and mood, in a random order; a coin decides between two queues."""
    tickets, coin = [], random.Random(SEED)
    for line in lines(TICKETS / name):
        named, urgency, mood, text = line.split("\t")
        if urgency not in ("urgent", "not urgent") or mood not in MOODS:
            sys.exit(f"got {urgency!r} and {mood!r}, expected urgent or not, and one of {MOODS}: {text!r}")
        queue = coin.choice(sorted(named.split(" / "), key=QUEUES.index))
        tickets.append({"prompt": text, "queue": queue, "urgent": urgency == "urgent", "mood": mood})
    random.Random(SEED).shuffle(tickets)
    return tickets


def split(strata: list[list[Ticket]], rng: random.Random) -> dict[str, list[Ticket]]:
    """Divide the strata by SHARES, in one running order so that small strata add up."""
    files: dict[str, list[Ticket]] = {name: [] for name, _ in SHARES}
    taken = dict.fromkeys(files, 0)
    count = 0
    for stratum in strata:
        for ticket in rng.sample(stratum, len(stratum)):
            count += 1
            # The file that is furthest behind its share gets the ticket.
            name = max(SHARES, key=lambda item: item[1] * count - taken[item[0]])[0]
            taken[name] += 1
            files[name].append(ticket)
    return files


def write(name: str, tickets: list[Ticket]) -> None:
    """Write one JSON Lines file and number its tickets."""
    stem = name.replace("_", "-").replace("/", "-")
    with (HERE / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for number, ticket in enumerate(tickets, start=1):
            row = {"id": f"triage-{stem}-{number:04d}", **ticket}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def table(rows: dict[str, dict[str, int]], corner: str) -> list[str]:
    """Return a Markdown table of counts with their sums."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    summed = ["all"] if len(columns) > 1 else []
    found = [f"| {corner} | {' | '.join([*columns, *summed])} |", f"|---|{'--:|' * len([*columns, *summed])}"]
    rows = rows | {"**all**": {name: sum(row.get(name, 0) for row in rows.values()) for name in columns}}
    for name, row in rows.items():
        counts = [row.get(column, 0) for column in columns]
        found.append(f"| {name} | {' | '.join(map(str, counts + [sum(counts)] * len(summed)))} |")
    return found


def of_queues(files: dict[str, list[Ticket]]) -> list[str]:
    """Return the table of clear and ambiguous tickets by queue."""
    counted = {
        queue: {
            f"{name} {'ambiguous' if doubtful else 'clear'}": sum(
                row["label"] == queue and row["ambiguous"] == doubtful for row in files[name]
            )
            for name in ("train", "validation", "test", "comparison", "proof")
            for doubtful in (False, True)
        }
        for queue in QUEUES
    }
    return table(counted, "queue")


def of_moods(files: dict[str, list[Ticket]]) -> list[str]:
    """Return the table of tickets by urgency and mood."""
    counted = {
        f"{'urgent' if urgent else 'not urgent'}, {mood}": {
            name: sum(row["urgent"] == urgent and row["mood"] == mood for row in rows) for name, rows in files.items()
        }
        for urgent in (True, False)
        for mood in MOODS
    }
    return table(counted, "urgency, mood")


def of_kinds(outside: list[Ticket]) -> list[str]:
    """Return the table of out-of-scope tickets by kind, the most frequent first."""
    kinds = Counter(ticket["kind"] for ticket in outside)
    return table({kind: {"tickets": n} for kind, n in kinds.most_common()}, "`out_of_scope.jsonl`")


def main() -> None:
    """Read the sentences, check them, split them and write the files."""
    clear, ambiguous = read_clear(), read_ambiguous()
    names = ("later.tsv", "moods.tsv", "held_out.tsv", "comparison.tsv", "proof.tsv")
    later, moods, held, comparison, proof = (read_mixed(name, random.Random(SEED)) for name in names)
    moods_parts = ("", "_held_out", "_comparison", "_proof", "_harder")
    asked, *later_moods = map(read_moods, (f"moods{part}.tsv" for part in moods_parts))
    moods_held, moods_comparison, moods_proof, moods_harder = later_moods
    outside: list[Ticket] = []
    for line in lines(TICKETS / "out_of_scope.tsv"):
        kind, text = line.split("\t")
        outside.append({"prompt": text, "kind": kind})
    everything = [*chain(*clear.values()), *chain(*ambiguous.values()), *later, *moods, *held, *comparison, *proof]
    refuse_duplicates([ticket["prompt"] for ticket in (*everything, *chain(*later_moods), *outside)])

    rng = random.Random(SEED)
    for pair in ambiguous.values():
        for ticket in pair:
            # A fair coin: neither queue is the better answer.
            ticket["label"] = rng.choice(ticket["queues"])
    files: dict[str, list[Ticket]] = {name: [] for name, _ in SHARES}
    for part in (*([stratum] for stratum in clear.values()), list(ambiguous.values())):
        for name, tickets in split(part, rng).items():
            files[name].extend(tickets)
    files["out_of_scope"] = outside
    # Last, so that the others keep their bytes.
    files |= {"later": later + moods, "held_out": held, "comparison": comparison, "proof": proof}
    for tickets in files.values():
        rng.shuffle(tickets)
    files["train"] += files.pop("more_train") + files.pop("later")
    held = files.pop("held_out")
    files["validation"] += held[:N_HELD_VALIDATION]
    files["test"] += held[N_HELD_VALIDATION:]

    for name, tickets in files.items():
        # One order of the fields for every row.
        order = ("prompt", "label", "ambiguous", "queues", "kind")
        write(name, [{key: row[key] for key in order if key in row} for row in tickets])

    moods_files = {
        "moods/train": asked[N_MOODS_VALIDATION:],
        "moods/validation": asked[:N_MOODS_VALIDATION] + moods_held[:N_HELD_VALIDATION],
        "moods/test": moods_held[N_HELD_VALIDATION:],
        "moods/comparison": moods_comparison,
        "moods/proof": moods_proof,
        "moods/harder": moods_harder,
    }
    for name, tickets in moods_files.items():
        write(name, tickets)
    counts = [*of_queues(files), "", *of_moods(moods_files), "", *of_kinds(outside)]
    before, _, rest = (HERE / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    readme = before + BEGIN + "\n".join(counts) + "\n" + END + rest.partition(END)[2]
    (HERE / "README.md").write_text(readme, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
