"""A real HTTP server in a thread that speaks OpenAI's protocol, and misbehaves as a test tells it to."""

from __future__ import annotations

import email.utils
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request: the server's script says what comes back."""

    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.enter(self)
        try:
            self.server.reply(self)(self)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has gone, as after its time-out
        finally:
            self.server.leave()

    def send(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class JudgeServer(ThreadingHTTPServer):
    """Replies from a script, in order; then, for ever, a verdict."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: list[Reply], verdict: Callable[[str], str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.verdict = script, verdict
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def counts(self) -> Counter[str]:
        """How often each request came."""
        return Counter(json.dumps(body, sort_keys=True) for body in self.bodies)

    def enter(self, handler: Handler) -> None:
        with self.lock:
            self.bodies.append(handler.body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)

    def leave(self) -> None:
        with self.lock:
            self.at_once -= 1

    def reply(self, handler: Handler) -> Reply:
        with self.lock:
            if self.script:
                return self.script.pop(0)
        return says(self.verdict(handler.body["messages"][-1]["content"]))

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def judge_server(*script: Reply, verdict: Callable[[str], str] = lambda text: "Preferred: A") -> Iterator[JudgeServer]:
    """A server that replies as the script says, then with verdicts on the user's message."""
    server = JudgeServer(list(script), verdict)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(content: Any, **changes: Any) -> dict[str, Any]:
    """A whole answer of the protocol."""
    message = {"role": "assistant", "content": content, **changes.pop("message", {})}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-1",
        "choices": [{"index": 0, "message": message, "finish_reason": changes.pop("finish_reason", "stop")}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        **changes,
    }


def says(content: Any, **changes: Any) -> Reply:
    """An answer with this content."""
    return lambda handler: handler.send(200, json.dumps(completion(content, **changes)).encode())


def sends(content: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> Reply:
    """This body: JSON types, or bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda handler: handler.send(status, body, content_type, **headers)


def fails(status: int, message: str = "it failed", code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    return sends({"error": {"message": message, "code": code}}, status, **headers)


def slowed(seconds: float, reply: Reply) -> Reply:
    """A reply after a while."""

    def late(handler: Handler) -> None:
        time.sleep(seconds)
        reply(handler)

    return late


def resets(handler: Handler) -> None:
    """The connection is reset before any answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def breaks_off(handler: Handler) -> None:
    """Half of the promised body, then the connection ends."""
    body = json.dumps(completion("Preferred: A")).encode()
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drips(handler: Handler) -> None:
    """A byte now and then: no single read times out."""
    body = json.dumps(completion("Preferred: A")).encode()
    handler.send_response(200)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    for place in range(len(body)):
        handler.wfile.write(body[place : place + 1])
        handler.wfile.flush()
        time.sleep(0.05)


def in_seconds(seconds: float) -> str:
    """A date as Retry-After may hold it."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)
