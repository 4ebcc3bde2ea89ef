"""A real HTTP server on this machine that answers with chat completions."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[str], tuple[int, str]]
"""From the last message to HTTP state and body."""


def completion(content: str | None) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


class ChatServer:
    """What came in, and what goes out."""

    def __init__(self, reply: Reply) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reply = reply
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                state, answer = server.reply(body["messages"][-1]["content"])
                content = answer.encode()
                self.send_response(state)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @property
    def asked(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]


@contextmanager
def serving(reply: Reply) -> Iterator[ChatServer]:
    found = ChatServer(reply)
    thread = threading.Thread(target=found.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        found.http.shutdown()
        thread.join()
        found.http.server_close()
