"""A sampling server's routes over real HTTP, with a real small model behind them, and faults to order.

Routes, parameters and answers are those of vLLM 0.32 (a test holds them to answers of a real one) and of SGLang 0.5.23
(its sources). Sleep is modelled after the source of vLLM 0.32. Left out: what is not used.
"""

import copy
import json
import math
import queue
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

import torch

from heliostat.config import ModelSection
from heliostat.models import load_model
from heliostat.models.head import completion_head
from heliostat.rollout import DecodeLimits, SampleRequest, SamplingSettings, TorchEngine
from heliostat.types import Problem, Prompt, StopReason

INSPECTION = """LlamaForCausalLM()(
  (model): LlamaModel()(
    (embed_tokens): VocabParallelEmbedding(num_embeddings={vocab}, num_embeddings_per_partition={vocab}, \
embedding_dim={width}, org_vocab_size={vocab}, num_embeddings_padded={vocab}, tp_size=1)
    (layers): ModuleList()(
      (0-{last}): {layers} x LlamaDecoderLayer()(
      )
    )
  )
)"""


class Refused(Exception):
    """A status other than 200, and the answer with it."""


class Transfer:
    """The receiving side of vLLM's weight transfer, and a stand-in for the trainer's end of the group.

    As in vLLM, it has to be joined, begun, received and finished in this order, and receiving waits for the trainer.
    """

    def __init__(self):
        self.is_configured = True
        self.members = None
        self.is_active = False
        self.sent = queue.Queue()
        self.both_are_there = threading.Barrier(2)
        self.groups = []

    def require(self, condition, sentence):
        if not condition:
            raise Refused(500, json.dumps({"error": sentence}).encode())

    def shut_down(self):
        self.require(not self.is_active, "Cannot release a trainer connection during a weight update")
        self.members = None
        return {"message": "Weight transfer shut down"}

    def join(self, told):
        self.require(self.is_configured, "Weight transfer not configured.")
        self.require(self.members is None, "joined already")
        self.both_are_there.wait(10)
        self.members = told
        return {"message": "Weight transfer initialized"}

    def begin(self, is_paused):
        self.require(
            self.members is not None and is_paused and not self.is_active, "not initialized, running or active"
        )
        self.is_active = True
        return {"message": "Weight update started"}

    def receive(self, model, told):
        self.require(self.is_active, "start_weight_update must be called before update_weights.")
        own = dict(model.named_parameters())
        for name, dtype, shape in zip(told["names"], told["dtype_names"], told["shapes"], strict=True):
            if list(own[name].shape) != shape:
                self.is_active = False
            self.require(self.is_active, f"{name} has another shape")
            tensor = self.sent.get(timeout=10)
            assert (str(tensor.dtype), list(tensor.shape)) == (f"torch.{dtype}", shape)
            with torch.no_grad():
                own[name].copy_(tensor)
        return {"message": "Weights updated"}

    def finish(self):
        self.require(self.is_active, "finish_weight_update called without a matching start_weight_update.")
        self.is_active = False
        return {"message": "Weight update finished"}

    def open_group(self, address, port, num_members):
        self.both_are_there.wait(10)
        self.groups.append(StandIn(self.sent, (address, port, num_members)))
        return self.groups[-1]


class StandIn:
    """A group that copies in place of NCCL."""

    def __init__(self, sent, told):
        self.sent, self.told, self.is_open = sent, told, True

    def start(self, tensors):
        for tensor in tensors:
            self.sent.put(tensor.detach().clone())

    def wait(self):
        assert self.sent.empty(), "this would wait for good"

    def close(self):
        self.is_open = False


class FakeServer:
    """The state behind the routes.

    Attributes:
        max_length, dtype: that it reports in place of the model's own.
        faults: path -> functions of the handler and the answer, one taken per request; each may send what it likes and
            return None, or return another answer.
        stale_head: keep the output projection of before when weights are reloaded.
        can_sleep: whether it was started with ``--enable-sleep-mode``; None: it does not tell.
        asleep: the parts of its memory that are away. As in vLLM, requests then wait, weights that level 2 dropped are
            no numbers, and touching memory that is away ends the engine.
    """

    no_lora = (404, b'{"detail":"Not Found"}')

    def __init__(self, loaded):
        self.loaded = loaded
        self.lock = threading.Lock()
        self.faults = {}
        self.always = {}
        self.stale_head = False
        self.ignores_reload = False
        self.keeps_cache = False
        self.max_length = 512
        self.dtype = None
        self.logprobs_mode = "processed_logprobs"
        self.version = "default"
        self.num_reloads = 0
        self.adapters = {}
        self.loaded_adapters = []
        self.has_lora = True
        self.ignores_adapters = False
        self.can_sleep = None
        self.asleep = set()
        self.is_paused = False
        self.awake = threading.Condition()
        self.transfer = Transfer()
        self.calls = Counter()
        self.headers = []
        self.bodies = []
        self.released = threading.Event()

    def answer(self, path, body):
        route, _, query = path.partition("?")
        return self.routes({**(body or {}), **dict(parse_qsl(query))})[route]()

    def routes(self, body):
        return {
            "/v1/models": self.models,
            "/server_info": self.settings,
            "/weight_info": lambda: {"weight_version": self.version},
            "/update_weight_version": lambda: self.mark(body),
            "/v1/completions": lambda: self.completions(body),
            "/collective_rpc": lambda: self.remote_call(body),
            "/reset_prefix_cache": lambda: {"success": not self.keeps_cache},
            "/pause": self.pause,
            "/resume": self.resume,
            "/sleep": lambda: self.sleep(int(body["level"])),
            "/wake_up": lambda: self.wake_up(body.get("tags")),
            "/is_sleeping": lambda: {"is_sleeping": self.is_paused or bool(self.asleep)},
            "/v1/load_lora_adapter": lambda: self.load_adapter(body),
            "/v1/unload_lora_adapter": lambda: self.unload_adapter(body),
            "/get_world_size": lambda: {"world_size": 2},
            "/shutdown_weight_transfer_engine": lambda: self.transfer.shut_down(),
            "/init_weight_transfer_engine": lambda: self.transfer.join(body["init_info"]),
            "/start_weight_update": lambda: self.transfer.begin(self.is_paused),
            "/update_weights": lambda: self.transfer.receive(self.loaded.model, body["update_info"]),
            "/finish_weight_update": lambda: self.transfer.finish(),
        }

    def models(self):
        card = {
            "id": "served",
            "object": "model",
            "root": "served",
            "max_model_len": self.max_length,
        }
        return {"object": "list", "data": [card]}

    def settings(self):
        dtype = self.dtype or str(self.loaded.model.dtype)
        model = {"dtype": dtype, "logprobs_mode": self.logprobs_mode, "max_model_len": self.max_length}
        if self.can_sleep is not None:
            model["enable_sleep_mode"] = self.can_sleep
        return {"vllm_config": {"model_config": model}}

    def mark(self, body):
        self.version = body["new_version"]
        return {"success": True, "new_version": self.version}

    def pause(self):
        self.is_paused = True
        return {"status": "paused"}

    def resume(self):
        self.touch("kv_cache")
        with self.awake:
            self.is_paused = False
            self.awake.notify_all()
        return {"status": "resumed"}

    def sleep(self, level):
        self.is_paused = True
        self.asleep |= {"weights", "kv_cache"}
        if level == 2:
            with torch.no_grad():
                for parameter in self.loaded.model.parameters():
                    parameter.fill_(math.nan)
        return {"status": "sleeping", "level": level}

    def wake_up(self, tag):
        if tag is None or tag in self.asleep:
            self.asleep -= {tag} if tag else {"weights", "kv_cache"}
        if not self.asleep:
            self.resume()
        return {"status": "sleeping" if self.asleep else "awake", "tags": [tag] if tag else None}

    def touch(self, part):
        if part in self.asleep:
            raise Refused(500, b'{"error":"EngineDeadError"}')

    def remote_call(self, body):
        called = {"reload_weights": self.reload, "get_model_inspection": self.inspection}
        return {"results": [called[body["method"]](body.get("kwargs", {}).get("weights_path"))]}

    def inspection(self, folder):
        config = self.loaded.model.config
        return INSPECTION.format(
            last=config.num_hidden_layers - 1,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            vocab=config.vocab_size,
        )

    def load_adapter(self, body):
        name, folder = body["lora_name"], body["lora_path"]
        assert name not in self.adapters
        self.touch("weights")
        if not self.has_lora:
            raise Refused(*self.no_lora)
        from peft import PeftModel

        model = PeftModel.from_pretrained(copy.deepcopy(self.loaded.model), folder).merge_and_unload().eval()
        self.adapters[name] = replace(self.loaded, model=model, head=completion_head(model))
        self.loaded_adapters.append(name)
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_adapter(self, body):
        self.touch("weights")
        del self.adapters[body["lora_name"]]
        return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def adapted(self, name):
        """The served model, or an adapter merged into a copy of it."""
        return self.loaded if name == "served" or self.ignores_adapters else self.adapters[name]

    def completions(self, body):
        assert body["return_token_ids"] is True
        assert body["logprobs"] == 0
        limits = DecodeLimits(body["max_tokens"], stop=tuple(body["stop"]))
        with self.awake:  # requests to a paused or sleeping server are queued
            self.awake.wait_for(lambda: not self.is_paused or self.released.is_set(), timeout=30)
        if self.is_paused:
            raise Refused(503, b"the test is over")
        prompt = Prompt(Problem(str(body["prompt"]), "served", ""), tuple(body["prompt"]))
        settings = SamplingSettings(body["temperature"], body["top_p"], body["top_k"])
        with self.lock:
            engine = TorchEngine(self.adapted(body["model"]), limits)
            (group,) = engine.sample(SampleRequest([prompt], body["n"], settings, seed=body["seed"], policy_step=0))
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": "served",
            "choices": [
                {
                    "index": index,
                    "text": completion.text,
                    "token_ids": list(completion.token_ids),
                    "logprobs": {"token_logprobs": [float(x) for x in completion.logp_gen], "tokens": []},
                    "finish_reason": "length" if completion.stop_reason is StopReason.MAX_TOKENS else "stop",
                    "stop_reason": None,
                }
                for index, completion in enumerate(group.completions)
            ],
            "usage": {"prompt_tokens": len(body["prompt"])},
        }

    def reload(self, folder):
        self.touch("weights")
        self.num_reloads += 1
        if self.ignores_reload:
            return
        from transformers import AutoModelForCausalLM

        model = self.loaded.model
        old_head = model.lm_head.weight.detach().clone()
        fresh = AutoModelForCausalLM.from_pretrained(folder)
        model.load_state_dict(fresh.state_dict(), strict=False)
        if self.stale_head:
            model.lm_head.weight = torch.nn.Parameter(old_head)


class FakeSGLang(FakeServer):
    """The same with SGLang's routes.

    Attributes:
        deterministic: whether it was started with ``--enable-deterministic-inference``.
        folder: of the weights.
    """

    no_lora = (400, b'{"success":false,"error_message":"LoRA is not enabled."}')

    def __init__(self, loaded):
        super().__init__(loaded)
        self.deterministic = False
        self.folder = "served"

    def routes(self, body):
        return {
            "/v1/models": self.models,
            "/server_info": self.settings,
            "/model_info": lambda: {"model_path": self.folder, "weight_version": self.version},
            "/v1/completions": lambda: self.completions(body),
            "/update_weights_from_disk": lambda: self.update(body),
            "/update_weight_version": lambda: self.mark(body),
            "/load_lora_adapter": lambda: self.load_adapter(body) and {"success": True},
            "/unload_lora_adapter": lambda: self.unload_adapter(body) and {"success": True},
        }

    def settings(self):
        dtype = (self.dtype or str(self.loaded.model.dtype)).removeprefix("torch.")
        longest = self.max_length - 6
        return {"dtype": dtype, "max_req_input_len": longest, "enable_deterministic_inference": self.deterministic}

    def update(self, body):
        assert body["flush_cache"] is True
        self.reload(body["model_path"])
        self.version, self.folder = body["weight_version"], body["model_path"]
        return {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    def completions(self, body):
        assert body["top_k"] != 0, "top_k must be -1 (disable) or at least 1"
        body = body | {"top_k": max(0, body["top_k"]), "model": body.get("lora_path", body["model"])}
        if not self.deterministic:
            return super().completions(body)
        (choice,) = super().completions(body | {"n": 1})["choices"]
        return {"choices": [choice | {"index": index} for index in range(body["n"])]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.handle_one(None)

    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        self.handle_one(json.loads(raw) if raw else None)

    def handle_one(self, body):
        state = self.server.state
        path = self.path.partition("?")[0]
        state.calls[path] += 1
        state.headers.append(dict(self.headers))
        state.bodies.append(body)
        pending = state.faults.get(path)
        fault = pending.pop(0) if pending else state.always.get(path)
        if fault is not None:
            answer = fault(self, lambda: state.answer(self.path, body))
            if answer is None:
                return
        else:
            try:
                answer = state.answer(self.path, body)
            except Refused as refused:
                self.send(*refused.args)
                return
        content = b"" if answer is None else answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send(200, content)

    def send(self, status, content, claimed=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if claimed is None else claimed))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


class ManyAtOnce(ThreadingHTTPServer):
    """Takes as many connections at once as a client may open: a queue of five resets the others on a busy machine."""

    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that has left is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(state):
    """The server on a free port, as a URL."""
    server = ManyAtOnce(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.state = state
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        state.released.set()
        with state.awake:
            state.awake.notify_all()
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving_tiny(settings, dtype="auto"):
    """A server of the built-in tiny model, fresh: its state and its URL."""
    state = FakeServer(load_model(ModelSection(path="tiny", settings=settings, dtype=dtype), 0))
    state.loaded.model.eval()
    with serving(state) as url:
        yield state, url


def served_from(url, folder):
    """The settings of a recipe whose rollouts come from a server, with a folder for weights."""
    return {
        "rollout.engine": "vllm",
        "rollout.server_url": url,
        "rollout.sync_dir": str(folder / "sync"),
        "rollout.server_retries": 0,
    }


# -- faults: of the handler, and a function that gives the right answer ------------------------------------------------


def dies(handler, answer):
    """The connection is closed without a word."""
    handler.close_connection = True
    handler.connection.close()


def hangs(handler, answer):
    """Nothing comes until the test is over."""
    handler.close_connection = True
    handler.server.state.released.wait(30)


def drips(handler, answer):
    """A byte now and then, for longer than anybody waits."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(600):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        if handler.server.state.released.wait(0.05):
            return


def answers_late(handler, answer):
    """Slowly, but in time."""
    handler.server.state.released.wait(0.2)
    return answer()


def truncated(handler, answer):
    """The head promises more than comes."""
    content = json.dumps(answer()).encode()
    handler.send(200, content[: len(content) // 2], claimed=len(content))
    handler.close_connection = True
    handler.connection.close()


def half_a_document(handler, answer):
    """Complete as HTTP, cut off as JSON."""
    content = json.dumps(answer()).encode()
    handler.send(200, content[: len(content) // 2])


def web_page(handler, answer):
    handler.send(200, b"<html>proxy login</html>")


def unavailable(handler, answer):
    handler.send(503, b'{"error": {"message": "engine is starting"}}')


def edits(change):
    """The right answer, changed."""

    def fault(handler, answer):
        content = answer()
        change(content)
        return content

    return fault
