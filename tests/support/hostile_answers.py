"""What a server may answer in place of completions: wrong shapes, wrong numbers, wrong bytes, and no end."""

import json

from tests.support.fake_server import dies, drips, hangs, truncated

SAYS = "\x1b[2J\u202e" + "x" * 100_000


def whole(value):
    """A document of another shape."""
    return lambda handler, answer: handler.send(200, json.dumps(value).encode())


def put(*path):
    """The right answer with a value at ``path`` of its choices; the last of the arguments is the value."""
    *keys, last, value = path

    def fault(handler, answer):
        content = answer()
        place = content["choices"]
        for key in keys:
            place = place[key]
        place[last] = value
        return content

    return fault


def raw(content):
    return lambda handler, answer: handler.send(200, content)


def dripping(first, piece, pause_s):
    """An answer that never ends: a beginning, then the same piece again and again, until the test is over."""

    def fault(handler, answer):
        handler.close_connection = True
        handler.wfile.write(first)
        while not handler.server.state.released.wait(pause_s):
            try:
                handler.wfile.write(piece)
                handler.wfile.flush()
            except OSError:
                return

    return fault


def bad_chunk(handler, answer):
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n")


def no_http(handler, answer):
    handler.close_connection = True
    handler.wfile.write(b"\x00\xff SSH-2.0-OpenSSH\r\n")


ANSWERS = {
    "a list": whole([]),
    "a number": whole(3),
    "null": whole(None),
    "a string": whole(SAYS),
    "no choices": whole({"choices": []}),
    "choices of strings": whole({"choices": [SAYS] * 4}),
    "choices as a map": whole({"choices": {"0": {}}}),
    "an error with status 200": whole({"error": {"message": SAYS}}),
    "null token ids": put(0, "token_ids", None),
    "token ids as text": put(0, "token_ids", "1 2 3"),
    "token ids of text": put(0, "token_ids", ["5"]),
    "token ids of truths": put(0, "token_ids", [True]),
    "token ids of fractions": put(0, "token_ids", [5.5]),
    "token ids of lists": put(0, "token_ids", [[5]]),
    "negative token ids": put(0, "token_ids", [-1]),
    "endless token ids": put(0, "token_ids", [10**400]),
    "no token ids": put(0, "token_ids", []),
    "null log-probabilities": put(0, "logprobs", None),
    "log-probabilities of null": put(0, "logprobs", "token_logprobs", [None]),
    "log-probabilities as text": put(0, "logprobs", "token_logprobs", ["-1"]),
    "infinite log-probabilities": put(0, "logprobs", {"token_logprobs": [float("-inf")] * 6}),
    "log-probabilities that are no numbers": put(0, "logprobs", {"token_logprobs": [float("nan")] * 6}),
    "log-probabilities above 0": put(
        0, {**{}, "index": 0, "token_ids": [40], "finish_reason": "stop", "logprobs": {"token_logprobs": [2.0]}}
    ),
    "log-probabilities beyond numbers": put(0, "logprobs", {"token_logprobs": [10**400]}),
    "an index twice": put(1, "index", 0),
    "an index beyond": put(0, "index", 10**9),
    "an index of text": put(0, "index", "0"),
    "a null reason": put(0, "finish_reason", None),
    "a reason with escapes": put(
        0, {"index": 0, "token_ids": [40], "finish_reason": SAYS, "logprobs": {"token_logprobs": [-1.0]}}
    ),
    "bytes that are no text": raw(b"\xff\xfe{}"),
    "nothing": raw(b""),
    "deep lists": raw(b"[" * 100_000),
    "deep objects": raw(b'{"a":' * 100_000),
    "an endless number": raw(b'{"choices": [' + b"1" * 100_000 + b"]}"),
    "half a document": raw(b'{"choices": ['),
}
"""Fault -> what is answered; all are refused in one sentence."""

CONNECTIONS = {
    "closed": dies,
    "silent": hangs,
    "a body by drips": drips,
    "headers by drips": dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", 0.05),
    "status 100 for ever": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    "chunks for ever": dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.02),
    "a chunk without a size": bad_chunk,
    "no HTTP": no_http,
    "cut off": truncated,
}
"""The same of connections; all are given up at their deadline, if not before."""
