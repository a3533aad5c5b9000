"""Something else than Redis at its address, or other contents in it: feedback is unavailable, and answers go on."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread

import pytest

from blora.decision.drift import Seen
from blora.server.errors import FeedbackUnavailableError
from blora.server.monitoring.ledgers.protocol import Contents
from blora.server.monitoring.ledgers.redis_ledger import RedisLedger
from tests.server.fakes import FakeEngine, running
from tests.server.monitoring.test_feedback import CALIBRATED, ask, tell

# Replies to each command.
REPLIES = {
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a length that is no number": b"$abc\r\n",
    "a number that is none": b":x\r\n",
    "a text in place of an array": b"+OK\r\n",
    "a text that is no entry": b"$7\r\nnothing\r\n",
    "numbers": b"*2\r\n:1\r\n:2\r\n",
}


@contextmanager
def replying(reply: bytes) -> Iterator[str]:
    """Run a server that gives one reply to every command; yield its address."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            while asked := self.request.recv(65536):
                self.request.sendall(reply * asked.count(b"*"))

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


@pytest.mark.parametrize("reply", REPLIES)
async def test_replies_that_cannot_be_read_end_no_task_and_cost_no_answer(
    reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    with replying(REPLIES[reply]) as url:
        async with running(FakeEngine(handles=(CALIBRATED,)), feedback_redis=url) as server:
            answer = await ask(server)
            told = await tell(server, answer["id"], "billing")
            elsewhere = await tell(server, "pred_of_another_replica", "billing")
            await asyncio.sleep(0.2)
            looking = server.app.state.service._feedback._looking.values()
            assert [task.done() for task in looking] == [False]
            assert (await ask(server))["id"]
    assert told.status_code in (200, 503)  # what has not been written yet is found here
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (503, "feedback_unavailable")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("reply", [b"*2\r\n:1\r\n:2\r\n", b"$2\r\n42\r\n", b"*2\r\n$-1\r\n$-1\r\n"])
async def test_counts_that_cannot_be_read_are_unavailable(reply: bytes) -> None:
    with replying(reply) as url:
        ledger = RedisLedger(url, 100)
        with pytest.raises(FeedbackUnavailableError):
            await ledger.count(Contents("one", "sha256:1", "sha256:2"), "counter", Seen(1, 0))
        await ledger.close()
