"""A bucket's server on the loopback, and a proxy before it that fails as networks and servers do."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from faults.harness import until

KEY, SECRET = "AKIAZ9Q8FINDTHISKEY0", "zq7/FindThisSecretInNoLog+0123456789abcd"
"""Credentials that nothing else looks like."""
TIMEOUT = 2
"""Seconds after which the client gives a request up."""
KINDS = ("error", "late", "lost")


class Proxy:
    """Passes requests on, but for those that `choose` names a fault for.

    Faults: 'error' (a 503 answer, not passed on), 'denied' (a 403 answer, not passed on), 'late' (passed on, answered
    after the client gave up), 'lost' (passed on, not answered), 'gone' (neither), 'blind' (passed on without its
    condition).
    """

    def __init__(self, host: str, port: int) -> None:
        self.choose: Callable[[str, str], str | None] = lambda method, path: None
        self.happened: Counter[str] = Counter()
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(host, port))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def clear(self) -> None:
        """Pass everything on."""
        self.choose = lambda method, path: None
        self.happened.clear()

    def fail_some(self, rate: float, seed: int = 0) -> None:
        """Let a share of all requests fail, each kind of fault in turn."""
        draws, failed = random.Random(seed), [0]

        def choose(method: str, path: str) -> str | None:
            if draws.random() >= rate:
                return None
            failed[0] += 1
            return KINDS[failed[0] % len(KINDS)]

        self.choose = choose

    def fail_first(self, fault: str, method: str, ending: str, times: int = 1) -> None:
        """Let the first requests of a method for keys with an ending fail."""
        left = [times]

        def choose(requested: str, path: str) -> str | None:
            if requested == method and path.split("?")[0].endswith(ending) and left[0] > 0:
                left[0] -= 1
                return fault
            return None

        self.choose = choose

    def _handler(self, host: str, port: int) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy._guard:
                    fault = proxy.choose(self.command, self.path)
                    proxy.happened[fault or "passed"] += 1
                if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
                    fault = "denied"
                if fault == "gone":
                    self.hang_up()
                elif fault in ("error", "denied"):
                    status, code = (503, "SlowDown") if fault == "error" else (403, "AccessDenied")
                    error = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>a test</Message></Error>".encode()
                    self.answer(status, [("Content-Type", "application/xml")], error, len(error))
                else:
                    self.forward(body, fault)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

            def forward(self, body: bytes, fault: str | None) -> None:
                headers = dict(self.headers)
                if fault == "blind":
                    headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
                there = http.client.HTTPConnection(host, port, timeout=60)
                try:
                    there.request(self.command, self.path, body, headers)
                    answer = there.getresponse()
                    content = answer.read()
                finally:
                    there.close()
                if fault in ("lost", "late"):
                    time.sleep(TIMEOUT * 1.5 if fault == "late" else 0)
                    self.hang_up()
                    return
                skipped = {"transfer-encoding", "content-length", "connection", "server", "date"}
                kept_headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in skipped]
                size = int(answer.getheader("Content-Length") or len(content))
                self.answer(answer.status, kept_headers, content, size)

            def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, size: int) -> None:
                try:
                    self.send_response(status)
                    for name, value in headers:
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(size))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)
                except OSError:  # the client gave up
                    self.hang_up()

            def hang_up(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

        return Handler


class Server:
    """A bucket's server, as a process."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.host, self.port = free.getsockname()
        words = [sys.executable, "-m", "moto.server", "-H", self.host, "-p", str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers, "the bucket's server")

    def _answers(self) -> bool:
        assert self._process.poll() is None
        with socket.socket() as knock:
            return knock.connect_ex((self.host, self.port)) == 0

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
