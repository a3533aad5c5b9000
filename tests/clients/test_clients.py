"""Other projects' clients, unmodified, against a live server: their own examples, but for address, key and model."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server_process import ADAPTER, Server, free_port, serve, wait_for
from blora.base_model import BaseModel
from blora.config import QuestionConfig
from blora.server.keys import line_of, new_key
from tests.loras import random_lora

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv-clients"
EXAMPLES = Path(__file__).parent / "examples"

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        not (CLIENTS / ".ready").is_file() and "CI" not in os.environ,
        reason="the clients are not installed; `make clients` installs them into .venv-clients",
    ),
]

DOCUMENTED = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "decisions.md").read_text(), re.DOTALL)
# The blocks of the sections of docs/frameworks.md about clients, which ask the demo of `make run`.
_FRAMEWORKS = (ROOT / "docs" / "frameworks.md").read_text()
LANGCHAIN, LITELLM = (
    re.findall(r"```python\n(.*?)```", _FRAMEWORKS.split(f"## {name}\n")[1].split("\n## ")[0], re.DOTALL)[0]
    for name in ("LangChain", "LiteLLM")
)
[PROXY] = re.findall(r"```yaml\n(.*?)```", _FRAMEWORKS, re.DOTALL)
KEY = new_key()
TEXT = "Stripe has failed to connect for three days. Help ASAP."
# Nothing of the tests' own environment, and no look-up of prices or keys elsewhere.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
START_TIMEOUT_S = 240.0


@pytest.fixture(scope="module")
def server(smollm2_bf16: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model that answers any question, and one that answers two questions of its own."""
    folder = tmp_path_factory.mktemp("clients")
    adapters = {
        "open": random_lora(folder / "open", smollm2_bf16, None),
        "desk": random_lora(
            folder / "desk",
            smollm2_bf16,
            ("billing", "technical"),
            QuestionConfig(name="department", instructions="Which team should handle this request?"),
        ),
        "desk.urgent": random_lora(
            folder / "urgent",
            smollm2_bf16,
            ("true", "false"),
            QuestionConfig(name="urgent", type="predicate", instructions="Is this request urgent?"),
        ),
    }
    keys = folder / "keys"
    keys.write_text(f"{line_of('clients', 'predict', KEY, ('open', 'desk'))}\n")
    flags = {"api_keys": str(keys), "timeout_s": "600", "dtype": "bfloat16"}
    named = ",".join(f"{name}={path}" for name, path in adapters.items())
    with serve(folder / "log", adapters=named, **flags) as running:
        yield running


def run(example: str, url: str, key: str, model: str, home: Path) -> Any:
    """Return what an example prints."""
    command = [str(CLIENTS / "bin" / "python"), str(EXAMPLES / f"{example}.py"), url, key, model]
    env = {**ENVIRONMENT, "HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def post(server: Server, path: str, **body: Any) -> Any:
    """Return the server's answers to the same request without a client between."""
    headers = {"authorization": f"Bearer {KEY}"}
    response = httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=600)
    return response.raise_for_status().json()["answers"]


def close(value: Any) -> Any:
    """Return a number that bfloat16 and the make-up of a batch may have moved."""
    return pytest.approx(value, abs=0.05)


def test_a_models_own_questions(server: Server) -> None:
    questions = [
        {
            "type": "choice",
            "name": "department",
            "instructions": "Who?",
            "choices": [{"value": "technical"}, {"value": "billing"}],
        },
        {"type": "predicate", "instructions": "Is this request urgent?"},
    ]
    department, urgent = post(server, "/v1/decisions", model="desk", input=TEXT, questions=questions)
    assert (department["adapter"]["name"], urgent["adapter"]["name"]) == ("desk", "desk.urgent")


def test_openai(server: Server, tmp_path: Path) -> None:
    found = run("openai_client", server.url, KEY, "open", tmp_path)
    raw = post(server, "/v1/decisions", **found["request"])
    for said in (found["sync"], found["async"]):
        choice, urgent, score, boolean = said["answers"]
        assert [answer["type"] for answer in said["answers"]] == ["choice", "predicate", "score", "choice"]
        assert [answer["name"] for answer in said["answers"]] == ["department", "urgent", "frustration", None]
        assert [entry["value"] for entry in choice["probabilities"]] == ["billing", "technical"]
        assert choice["probabilities"][0]["probability"] == close(raw[0]["probabilities"][0]["probability"])
        assert urgent["probability"] == close(raw[1]["probability"])
        assert score["score"] == close(raw[2]["score"])
        assert [entry["label"] for entry in score["probabilities"]] == ["Calm", "Concerned", "Angry"]
        assert [entry["value"] for entry in boolean["probabilities"]] == [True, "true", False]
        # Fields that the client does not know are there all the same.
        assert (choice["abstained"], choice["calibrated"], choice["adapter"]["name"]) == (False, False, "open")
        assert said["usage"]["input_tokens"] > 0
    assert {"open", "desk"} <= set(found["models"])
    assert found["shown"] == found["models"]


@pytest.mark.parametrize("number", range(len(DOCUMENTED)))
def test_the_programs_of_the_document(server: Server, tmp_path: Path, number: int) -> None:
    program = DOCUMENTED[number].replace("http://127.0.0.1:8000", server.url).replace('"none"', repr(KEY))
    program = program.replace('"triage"', '"open"')
    done = subprocess.run(
        [str(CLIENTS / "bin" / "python"), "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env={**ENVIRONMENT, "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "urgent False False\nmood False False\n"


def test_openai_refusals_and_errors(server: Server, tmp_path: Path) -> None:
    found = run("openai_refusals", server.url, KEY, "open", tmp_path)
    assert (found["type"], found["answer"]["name"]) == ("refusal", "urgent")
    assert found["answer"]["abstain_reasons"][0]["reason"] == "low_confidence"
    assert (found["errors"]["empty"]["param"], found["errors"]["empty"]["code"]) == ("input", "empty_string")
    assert found["errors"]["image"]["param"] == "input[0].content[0]"


def test_langchain_openai(server: Server, tmp_path: Path) -> None:
    found = run("langchain_decisions", server.url, KEY, "open", tmp_path)
    assert found["choice"] in found["probabilities"]
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert 0 < found["urgent"] < 1
    assert 0 < found["frustration"] < 2
    assert 0 < found["structured"] < 1
    assert found["usage"] > 0


def test_langchain_openai_keeps_a_refusal_apart(server: Server, tmp_path: Path) -> None:
    found = run("langchain_refusals", server.url, KEY, "open", tmp_path)
    assert found == {"refusals": ["urgent"], "predicates": []}


def test_langchain_typesafe(server: Server, tmp_path: Path) -> None:
    found = run("langchain_typesafe_client", server.url, KEY, "open", tmp_path)
    assert found["choice"] in found["probabilities"]
    assert 0 < found["urgent"] < 1
    assert 0 < found["frustration"] < 2


def test_typesafe(server: Server, tmp_path: Path) -> None:
    found = run("typesafe_client", server.url, KEY, "open", tmp_path)
    criteria = {"billing": None, "technical": None, "other": None}
    question = {"type": "choice", "instructions": "What is this ticket about?", "criteria": criteria}
    state = {"document": "I was charged twice. Please fix this ASAP."}
    raw = post(server, "/v1/systemone", model="open", state=state, questions={"category": question})["category"]
    assert found["probabilities"] == close(raw["probabilities"])
    assert list(found["probabilities"]) == ["billing", "technical", "other"]
    assert 0 < found["urgent"] < 1  # of a body that the client has compressed
    assert found["legend"] == {"0": "calm", "1": "annoyed", "2": "angry"}
    assert found["refused"] == []
    assert {"open", "desk"} <= set(found["models"])


def test_litellm(server: Server, tmp_path: Path) -> None:
    found = run("litellm_client", server.url, KEY, "open", tmp_path)
    urgent, department = found["decisions"]["answers"]
    assert (urgent["type"], department["type"]) == ("predicate", "choice")
    assert sum(entry["probability"] for entry in department["probabilities"]) == pytest.approx(1)
    answers = found["systemone"]["answers"]
    assert 0 < answers["urgent"]["noul"] < 1
    assert 0 < answers["mood"]["score"] < 2


@contextmanager
def proxy(text: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Start litellm's proxy with the text of a config, and give its address and key."""
    config = folder / "config.yaml"
    config.write_text(text)
    port = free_port()
    url, key, log = f"http://127.0.0.1:{port}", "sk-of-the-proxy", folder / "log"
    command = [CLIENTS / "bin" / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(port)]
    env = {**ENVIRONMENT, "HOME": str(folder), "LITELLM_MASTER_KEY": key}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env, cwd=folder)
        try:
            wait_for(f"{url}/health/liveliness", process, log, START_TIMEOUT_S)
            yield url, key
        finally:
            process.kill()
            process.wait()


def test_litellm_as_a_proxy(server: Server, tmp_path: Path) -> None:
    params = {"model": "openai/open", "api_base": f"{server.url}/v1", "api_key": KEY}
    config = json.dumps({"model_list": [{"model_name": "ours", "litellm_params": params}]})
    with proxy(config, tmp_path) as (url, key):
        found = run("litellm_proxy_client", url, key, "ours", tmp_path)
    [answer] = found["answers"]
    assert (answer["type"], answer["name"]) == ("predicate", "urgent")
    question = {"type": "predicate", "name": "urgent", "instructions": "Is this request urgent?"}
    text = "Stripe has failed to connect for three days."
    [raw] = post(server, "/v1/decisions", model="open", input=text, questions=[question])
    assert answer["probability"] == close(raw["probability"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of `make run`, without keys, on a free port."""
    adapters = ",".join(f"triage{part}={ADAPTER}{part}" for part in ("", ".urgent", ".mood"))
    with serve(tmp_path_factory.mktemp("demo") / "log", adapters=adapters, timeout_s="600") as running:
        yield running


@pytest.mark.parametrize(("program", "n_numbers"), [(LANGCHAIN, 2), (LITELLM, 1)], ids=["langchain", "litellm"])
def test_the_programs_of_the_frameworks_page(demo: Server, tmp_path: Path, program: str, n_numbers: int) -> None:
    done = subprocess.run(
        [str(CLIENTS / "bin" / "python"), "-c", program.replace("http://127.0.0.1:8000", demo.url)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**ENVIRONMENT, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    numbers = re.findall(r"\d\.\d+(?:e-\d+)?", done.stdout)
    assert len(numbers) == n_numbers, done.stdout
    assert 0.5 < float(numbers[0]) <= 1  # the adapter for urgency says yes


def test_the_proxy_of_the_frameworks_page(demo: Server, tmp_path: Path) -> None:
    with proxy(PROXY.replace("http://127.0.0.1:8000", demo.url), tmp_path) as (url, key):
        found = run("litellm_proxy_client", url, key, "triage", tmp_path)
    [answer] = found["answers"]
    question = {"type": "predicate", "name": "urgent", "instructions": "Is this request urgent?"}
    text = "Stripe has failed to connect for three days."
    [raw] = post(demo, "/v1/decisions", model="triage", input=text, questions=[question])
    assert raw["adapter"]["name"] == "triage.urgent"
    assert answer["probability"] == close(raw["probability"])
