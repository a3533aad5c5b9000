"""A stand-in for vLLM: the part of its API that the engine uses, on a tiny model with LoRAs applied by PEFT."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from peft import PeftModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass
class FakeVllm:
    """Stand-in that serves a folder's model and fails on request.

    Attributes:
        fail: number of first completions to answer with 500.
        scale: of its logits and states, as if it were another model.
        pooling: whether it runs with --runner pooling, and answers with states in place of completions.
        another_after: number of requests after which it closes every connection and serves another model; None never.
    """

    folder: Path
    loras: dict[str, Path] = field(default_factory=dict)
    url: str = ""
    fail: int = 0
    scale: float = 1.0
    asked: int = 0
    max_length: int = 512
    pooling: bool = False
    another_after: int | None = None
    _models: dict[Path | None, PreTrainedModel | PeftModel] = field(default_factory=dict, repr=False)

    @property
    def port(self) -> int:
        """The port of its address."""
        return int(self.url.rpartition(":")[2])

    async def models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "base", "max_model_len": self.max_length}]})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        if body["lora_name"] in self.loras:
            return JSONResponse({"error": {"message": f"{body['lora_name']} has already been loaded."}}, 400)
        if not Path(body["lora_path"]).is_dir():
            return JSONResponse({"error": {"message": "no such LoRA"}}, 404)
        self.loras[body["lora_name"]] = Path(body["lora_path"])
        return PlainTextResponse("Success")

    async def unload(self, request: Request) -> Response:
        return PlainTextResponse(str(self.loras.pop((await request.json())["lora_name"], None)))

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        if refused := self._refused(body["model"], pooling=False):
            return refused
        log_probs = self._log_probs(self.loras[body["model"]], body["prompt"])
        choice: dict[str, Any] = {"text": "?", "logprobs": None, "prompt_logprobs": None}
        if tokens := body.get("logprob_token_ids"):
            found = {f"token_id:{token}": float(log_probs[-1, token]) for token in tokens}
            choice["logprobs"] = {"top_logprobs": [found]}
        if "prompt_logprobs" in body:
            read = zip(body["prompt"][1:], log_probs[:-1], strict=True)
            choice["prompt_logprobs"] = [None, *({str(t): {"logprob": float(at[t])}} for t, at in read)]
        return JSONResponse({"choices": [choice]})

    async def pool(self, request: Request) -> Response:
        body = await request.json()
        if refused := self._refused(body["model"], pooling=True):
            return refused
        assert (body["task"], body["use_activation"], body["encoding_format"]) == ("token_embed", False, "bytes_only")
        assert (body["embed_dtype"], body["endianness"]) == ("float32", "little")
        model = self._model(self.loras.get(body["model"]))
        with torch.no_grad():
            found = model(input_ids=torch.tensor([body["input"]]), output_hidden_states=True)
        states = self.scale * found.hidden_states[-1][0]
        closing = self.another_after is not None and self.asked >= self.another_after
        headers = {"connection": "close"} if closing else {}
        return Response(states.numpy().astype("<f4").tobytes(), headers=headers)

    def _refused(self, model: str, *, pooling: bool) -> Response | None:
        """The answer to a request that fails, for another runner, or for a model that is not there."""
        self.asked += 1
        if self.asked == self.another_after:
            self.scale = 4.0
        if self.fail:
            self.fail -= 1
            return JSONResponse({"error": {"message": "EngineDeadError"}}, 500)
        if self.pooling != pooling:
            return JSONResponse({"detail": "Not Found"}, 404)
        if model not in self.loras and not (pooling and model == "base"):
            return JSONResponse({"error": {"message": "does not exist"}}, 404)
        return None

    def _model(self, lora: Path | None) -> PreTrainedModel | PeftModel:
        if lora not in self._models:
            base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
            self._models[lora] = PeftModel.from_pretrained(base, str(lora)).eval() if lora is not None else base
        return self._models[lora]

    @torch.no_grad()
    def _log_probs(self, lora: Path, prompt: list[int]) -> torch.Tensor:
        found = self.scale * self._model(lora)(input_ids=torch.tensor([prompt])).logits[0]
        return torch.as_tensor(found).log_softmax(-1)


@asynccontextmanager
async def fake_vllm(folder: Path, port: int = 0, *, pooling: bool = False) -> AsyncIterator[FakeVllm]:
    """Start a stand-in on a port, or on a free one."""
    fake = FakeVllm(folder, pooling=pooling)
    routes = {"load_lora_adapter": fake.load, "unload_lora_adapter": fake.unload, "completions": fake.complete}
    models = Route("/v1/models", fake.models)
    pooling = Route("/pooling", fake.pool, methods=["POST"])
    posted = [Route(f"/v1/{path}", run, methods=["POST"]) for path, run in routes.items()]
    app = Starlette(routes=[models, pooling, *posted])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.create_server(("127.0.0.1", port)) as listener:
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield fake
        server.should_exit = True
        await serving
