"""The Redis of the component `redis`, started as its manifest says: it takes its password from the file, and no other."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as NoConnection

from benchmarks.server_process import free_port
from tests.deploy.kustomize import needs_kustomize, one, pods, settings_of
from tests.server.monitoring.redis_store import needs_redis

pytestmark = [needs_kustomize, needs_redis]

PASSWORD = '5f1c"0dead\\x30 $beef\\'  # which redis.conf would read otherwise


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The port and the process of a Redis, whose folders and port are a test's own and all else the manifest's."""
    [container] = pods("components/redis")["blora-redis"]["containers"]
    (tmp_path / "password").write_text(PASSWORD)
    port = free_port()
    [script] = container["args"]
    for mine, its in (
        (f"{tmp_path}/password", "/run/secrets/redis/password"),
        (f"dir {tmp_path}\nport {port}\nbind 127.0.0.1", "dir /data"),
    ):
        assert its in script
        script = script.replace(its, mine)
    process = subprocess.Popen([*container["command"], script], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with Redis(port=port, password=PASSWORD) as client:
                    client.ping()
                break
            except NoConnection:
                time.sleep(0.05)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def test_it_lets_in_who_has_the_password_and_tells_it_to_nobody(running):
    port, pid = running
    with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
        stranger.get("blora:prediction:x")
    assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text()
    assert "redis-server" in Path(f"/proc/{pid}/cmdline").read_text()  # the process itself, which gets the signals


def test_it_writes_down_what_it_is_told_and_forgets_the_oldest_first(running):
    port, _ = running
    with Redis(port=port, password=PASSWORD, decode_responses=True) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        # Every key of ours expires, so that there is always one to forget.
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-ttl"}
        bound = int(client.config_get("maxmemory")["maxmemory"])
    [container] = pods("components/redis")["blora-redis"]["containers"]
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert 2 * bound < 1024**3


def test_the_server_asks_it_with_the_password_of_the_secret():
    target = "components/redis"
    service = one(target, "Service", "blora-redis")
    [port] = service["spec"]["ports"]
    variables = settings_of(target)
    assert variables["BLORA_FEEDBACK_REDIS"] == f"redis://{service['metadata']['name']}:{port['port']}/0"
    file = Path(variables["BLORA_FEEDBACK_REDIS_PASSWORD_FILE"])
    specs = pods(target)
    secrets = {name: next(v["secret"] for v in spec["volumes"] if "secret" in v) for name, spec in specs.items()}
    assert secrets["blora"]["secretName"] == secrets["blora-redis"]["secretName"] == "blora-redis"
    [item] = secrets["blora"]["items"]
    [server] = specs["blora"]["containers"]
    [mount] = [m for m in server["volumeMounts"] if m["name"] == "redis-password"]
    assert file == Path(mount["mountPath"]) / item["path"]
