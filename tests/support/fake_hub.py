"""A hub on this machine: it records the calls of huggingface_hub's client, and keeps the files of commits."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """What was asked for, and the files that arrived; ``refuses`` is a status for every call."""

    def __init__(self, refuses=0):
        self.calls, self.files, self.refuses, self.address = [], {}, refuses, ""

    def answer(self, path, body):
        if path == "/api/repos/create":
            made = json.loads(body)
            return {"url": f"{self.address}/{made['organization']}/{made['name']}"}
        if path == "/api/validate-yaml":
            return {"warnings": [], "errors": []}
        if "/preupload/" in path:
            named = [one["path"] for one in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
        if "/commit/" in path:
            for line in body.decode().splitlines():
                if (entry := json.loads(line))["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return {"commitUrl": f"{self.address}/org/name/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
        return {}


@contextmanager
def serving(hub):
    """Serve ``hub`` on the loopback; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else self._chunks()
            hub.calls.append((self.path, body, self.headers.get("Authorization")))
            content = json.dumps({"error": "refused"} if hub.refuses else hub.answer(self.path, body)).encode()
            self.send_response(hub.refuses or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def _chunks(self):
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while length := int(self.rfile.readline(), 16):
                    body += self.rfile.read(length)
                    self.rfile.readline()
                self.rfile.readline()
            return body

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
