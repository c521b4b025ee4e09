"""A language model that judges, over real HTTP: it grades by a function of the quoted answer, with faults to order."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ANSWER = re.compile(r"<<([0-9a-f]{16}) answer begins>>\n(.*)\n<<\1 answer ends>>", re.DOTALL)


class FakeJudge:
    """The state of the server.

    Attributes:
        grade: maps the text of an answer to the reply.
        faults: statuses or whole answers that the next requests get, one each.
        refusal: maps a request to what it is refused with, by status 400; empty: it is answered.
        on_call: called with the number of each request before it is answered.
    """

    def __init__(self, grade):
        self.grade = grade
        self.faults = []
        self.refusal = lambda body: ""
        self.on_call = lambda number: None
        self.bodies = []
        self.keys = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.url = ""
        self.is_gone = False

    def break_off(self):
        """From now on, close every connection without an answer."""
        self.is_gone = True

    def answer(self, body):
        text = _ANSWER.search(body["messages"][-1]["content"])[2]
        return said(self.grade(text))


def said(content, reason="stop", **message):
    """An answer of the server with a reply."""
    return {
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }


@contextmanager
def judging(grade=lambda text: f"SCORE: {len(text)}"):
    """Serve on a free port until the end of the block."""
    judge = FakeJudge(grade)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                judge.bodies.append(body)
                judge.keys.append(self.headers["Authorization"])
                fault = judge.faults.pop(0) if judge.faults else None
                judge.busy += 1
                judge.most_busy = max(judge.most_busy, judge.busy)
                number = len(judge.bodies)
            judge.on_call(number)
            if judge.is_gone:
                self.close_connection = True
                return
            status, answer = (fault, {"error": "no"}) if isinstance(fault, int) else (200, fault or judge.answer(body))
            if refusal := judge.refusal(body):
                status, answer = 400, {"error": {"message": refusal, "type": "invalid_request_error"}}
            data = json.dumps(answer).encode()
            with judge.lock:
                judge.busy -= 1
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # the client is gone
                return

        def log_message(self, *args):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
