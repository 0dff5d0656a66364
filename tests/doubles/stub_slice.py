"""A slice in fifty lines: health, state and log-out, and the faults a real one may have, chosen by arguments.

`--dies` ends at once, `--deaf` ignores SIGTERM, `--sick` never becomes healthy, `--named X` calls itself slice X,
`--keyless` answers whoever asks, `--child` leaves a child in its process group, `--chatty N` writes N bytes first.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("--dies", action="store_true")
parser.add_argument("--deaf", action="store_true")
parser.add_argument("--sick", action="store_true")
parser.add_argument("--keyless", action="store_true")
parser.add_argument("--child", action="store_true")
parser.add_argument("--chatty", type=int, default=0)
parser.add_argument("--named", default=os.environ.get("SLICE_ID", "?"))
options = parser.parse_args()


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/api/health":
            self.answer(503 if options.sick else 200, {"status": "ok", "slice": options.named, "uptime": 1.5})
        elif not options.keyless and self.headers.get("x-slice-key") != Path(os.environ["SLICE_KEY_FILE"]).read_text():
            self.answer(401, {"error": "no key"})
        elif self.path == "/api/status/state":
            self.answer(200, {"state": "qr", "phoneNumber": None, "qr": {"qr": "text", "n": 1}})
        elif self.path == "/environment":
            self.answer(200, dict(os.environ))
        else:
            self.answer(404, {"error": "unknown"})

    do_POST = do_GET

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


if options.dies:
    sys.exit("this slice ends as it was told to")
signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else lambda *_: os._exit(0))
if options.child:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
print("x" * options.chatty, flush=True)
with Server((os.environ["HOST"], int(os.environ["PORT"])), Answers) as server:
    server.serve_forever()
