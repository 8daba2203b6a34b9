"""An HTTP server in a thread that can cut, forget ranges, answer errors and change its files."""

import contextlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files`, a dictionary of path to bytes.

    `cuts` are byte counts after which the next answers end early, `stalls` those after which they hang for a second;
    `statuses` are answered to the next requests instead of a file; `requests` is what was asked for, as (path, Range,
    If-Range).
    """

    def __init__(self):
        self.files = {}
        self.tags = {}
        self.cuts = []
        self.stalls = []
        self.statuses = []
        self.ranges = True
        self.validators = True
        self.lie = 0  # bytes by which the answer to a range is off
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name):
        return f"http://127.0.0.1:{self.http.server_port}/{name}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler):
        handler.close_connection = True
        name = handler.path.lstrip("/")
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.requests.append((name, asked, condition))
        if self.statuses or name not in self.files:
            status, headers = self.statuses.pop(0) if self.statuses else (404, {})
            return self._send(handler, status, {**headers, "Content-Length": "0"}, b"")
        content, tag = self.files[name], self.tags.get(name, '"1"')
        headers = {"ETag": tag} if self.validators else {}
        status, first = 200, 0
        match = re.fullmatch(r"bytes=(\d+)-", asked or "")
        if match and self.ranges and condition in (None, tag):
            status, first = 206, int(match[1]) - self.lie
            if first >= len(content):
                headers["Content-Range"] = f"bytes */{len(content)}"
                return self._send(handler, 416, {**headers, "Content-Length": "0"}, b"")
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(len(content) - first)
        body = content[first:]
        if self.stalls:
            self._send(handler, status, headers, body[: self.stalls.pop(0)])
            return time.sleep(1)
        return self._send(handler, status, headers, body[: self.cuts.pop(0)] if self.cuts else body)

    @staticmethod
    def _send(handler, status, headers, body):
        with contextlib.suppress(ConnectionError):  # a client that had enough
            handler.send_response(status)
            for key, value in headers.items():
                handler.send_header(key, value)
            handler.end_headers()
            handler.wfile.write(body)
