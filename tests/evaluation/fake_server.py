"""An HTTP server that speaks OpenAI's protocol, and misbehaves on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a test answers: (path, body, headers, number of the request) → status and JSON value, or raw bytes
Answer = Callable[[str, dict[str, Any], dict[str, str], int], tuple[int, Any]]


def completions(path: str, body: dict[str, Any], headers: dict[str, str], number: int) -> tuple[int, Any]:
    """A well-behaved server: texts that name prompt, seed and place."""
    is_chat = path.endswith("/chat/completions")
    asked = body["messages"][-1]["content"] if is_chat else body["prompt"]
    choices = []
    for index in range(body["n"]):
        text = f" said to {asked} with {body['seed']}/{index}"
        content = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choices.append(
            {"index": index, "finish_reason": "length" if index == 1 else "stop", "logprobs": None, **content}
        )
    kind = "chat.completion" if is_chat else "text_completion"
    return 200, {"id": "x", "object": kind, "created": 0, "model": body["model"], "choices": choices}


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(URL of the API, requests seen so far: their bodies with path and key)."""
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
                number = len(seen)
            status, value = answer(self.path, body, dict(self.headers), number)
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
