"""`lsa report --serve`: the report page on this machine, rebuilt while runs go on."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from typing_extensions import override

from lsa_study.errors import EnvironmentLacks, LsaError
from lsa_study.launch.status import status

HOST = "127.0.0.1"
LOOK_SECONDS = 5.0
"""So often it looks for results that are new; a page asks as often whether it is the last one."""
SCRIPT = """<script>
setInterval(async () => {
  try {
    const now = await (await fetch("/now")).json();
    if (now.built !== %d) location.reload();
    document.getElementById("lsa-now").textContent = now.line;
  } catch { document.getElementById("lsa-now").textContent = "lsa report --serve has ended"; }
}, %d);
</script>"""


class _Page:
    """The page as it was last built, and a line on the runs."""

    def __init__(self, build: Callable[[], Path], results: Path, tier: str) -> None:
        self.build, self.results, self.tier = build, results, tier
        self.built, self.html, self.line = 0, "", ""
        self.seen: object = None

    def look(self) -> None:
        """Build it anew if a run has ended since, or what people say of one has changed."""
        try:
            rows = status(self.results, tier=self.tier)
            counts = Counter(row.state for row in rows)
            self.line = ", ".join(f"{n} {state}" for state, n in counts.items()) or "no runs yet"
            notes = self.results / self.tier / "notes.json"
            remarks = notes.stat().st_mtime_ns if notes.exists() else None
            ended = {(row.identity, row.state) for row in rows if row.folder.result() is not None}
            if (seen := (ended, remarks)) == self.seen:
                return
            html = self.build().read_text("utf-8")
            self.seen = seen
        except (LsaError, OSError) as error:  # the last page stands
            self.line = str(error)
            return
        bar = f'<p id="lsa-now" role="status">{escape(self.line)}</p>'
        script = SCRIPT % (self.built + 1, 1000 * LOOK_SECONDS)
        self.html = html.replace("</body>", f"{bar}{script}</body>", 1)
        self.built += 1


def serve(
    build: Callable[[], Path], results: Path, tier: str, *, port: int, say: Callable[[str], object]
) -> None:
    """Serve the page that ``build`` writes, to this machine alone, until SIGINT or SIGTERM.

    Args:
        build: writes the page anew and gives its path.
        port: 0: one that is free.
        say: is given a line once it is served, and one at the end.

    Raises:
        EnvironmentLacks: the port is in use, or not allowed.
        LsaError: the page cannot be built at all.
    """
    page, stop = _Page(build, results, tier), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another name for this machine is another site, which tries to read the page.
            name = (self.headers.get("Host") or "").rpartition(":")[0]
            now = json.dumps({"built": page.built, "line": page.line})
            answers = {"/": (page.html, "text/html"), "/now": (now, "application/json")}
            if name not in (HOST, "localhost") or self.path not in answers:
                self.send_error(404)
                return
            text, kind = answers[self.path]
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(text.encode())))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(text.encode())

        @override
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        wanted = "give another --port, or 0 for one that is free"
        raise EnvironmentLacks(f"--port {port}: {error.strerror}; {wanted}") from None
    with server:
        page.look()
        if not page.built:
            raise LsaError(page.line)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        say(f"http://{HOST}:{server.server_port}/  (Ctrl-C ends it)")
        while not stop.wait(LOOK_SECONDS):
            page.look()
        server.shutdown()
    say("ended")
