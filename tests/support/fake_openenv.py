"""An OpenEnv server's routes over a real socket: ``/schema`` over HTTP, and sessions over WebSocket on ``/ws``.

Messages and error codes are those of OpenEnv 0.10 (its server's source). Each session has an environment of its own.
"""

import json
import socket
import threading
from contextlib import contextmanager
from typing import Any, ClassVar

import wsproto
from wsproto import events


class EchoEnvironment:
    """One text field a turn; three turns an episode; the reward is missing until the last."""

    action: ClassVar[dict[str, Any]] = {
        "properties": {"message": {"type": "string"}, "metadata": {}},
        "required": ["message"],
    }

    def reset(self, data):
        self.turns = 0
        return {"observation": {"text": f"seed {data['seed']} {data['prompt']}"}, "reward": None, "done": False}

    def step(self, action):
        if set(action) - {"message", "metadata"}:
            return "VALIDATION_ERROR"
        if action["message"] == "crash":
            return "EXECUTION_ERROR"
        self.turns += 1
        done = self.turns == 3
        return {
            "observation": {"text": action["message"].upper(), "turn": self.turns if done else None},
            "reward": 0.5 if done else None,
            "done": done,
        }


class ToolServer:
    """A server of tools (MCP): actions list tools and call them."""

    action: ClassVar[dict[str, Any]] = {
        "properties": {"type": {}, "tool_name": {}, "arguments": {}, "metadata": {}},
        "required": ["tool_name"],
    }

    def reset(self, data):
        return {"observation": {}, "reward": None, "done": False}

    def step(self, action):
        if action["type"] == "list_tools":
            schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
            tools = [{"name": "reverse", "description": "Reverse a word.", "input_schema": schema}]
            return {"observation": {"tools": tools}, "reward": None, "done": False}
        word = action["arguments"].get("word")
        if word is None:
            error = {"error_type": "invalid_args", "message": "word is missing"}
            return {"observation": {"tool_name": "reverse", "error": error}, "reward": None, "done": False}
        result = {"data": word[::-1], "content": [{"type": "text", "text": word[::-1]}]}
        return {"observation": {"result": result, "error": None}, "reward": 1.0, "done": word == "end"}


@contextmanager
def serving(environment_class):
    """Serve sessions of a class; yields the address, and a list of the sessions' states, ``open`` or ``closed``."""
    states = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, environment_class, states), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", states


def _accept(listener, environment_class, states):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the test is over
            return
        threading.Thread(target=_serve, args=(connection, environment_class, states), daemon=True).start()


def _serve(connection, environment_class, states):
    with connection:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        if head.startswith(b"GET /schema"):
            body = json.dumps({"action": environment_class.action, "observation": {}, "state": {}}).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
            return
        assert head.startswith(b"GET /ws"), head
        index = len(states)
        states.append("open")
        _converse(connection, head, environment_class())
        states[index] = "closed"


def _converse(connection, head, environment):
    protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    protocol.receive_data(head)
    while True:
        for event in protocol.events():
            if isinstance(event, events.Request):
                connection.sendall(protocol.send(events.AcceptConnection()))
            elif isinstance(event, events.CloseConnection):
                return
            elif isinstance(event, events.TextMessage):
                message = json.loads(event.data)
                if message["type"] == "close":
                    return
                answer = json.dumps(_answer(environment, message))
                connection.sendall(protocol.send(events.TextMessage(answer)))
        data = connection.recv(65536)
        if not data:
            return
        protocol.receive_data(data)


def _answer(environment, message):
    assert set(message) == {"type", "data"}, message
    result = {"reset": environment.reset, "step": environment.step}[message["type"]](message["data"])
    if isinstance(result, str):
        return {"type": "error", "data": {"message": "refused", "code": result}}
    return {"type": "observation", "data": result}
