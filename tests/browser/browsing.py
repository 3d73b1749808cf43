"""A real browser whose every request is written down and answered by nobody."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

# The browser's own errand that no flag turns off, who is signed in, goes to a name that nobody can have (RFC 2606).
ACCOUNTS = "http://accounts.invalid"
# Its others are turned off: updates of components, the time of day, synchronising, telling how it is used.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
         "--no-first-run", "--no-default-browser-check", "--metrics-recording-only", "--disable-extensions",
         "--component-updater=url-source=about:blank", "--disable-features=NetworkTimeServiceQuerying",
         f"--gaia-url={ACCOUNTS}")  # fmt: skip
LIMIT_S = 90


class Proxy(ThreadingTCPServer):
    """Every request that leaves the browser comes here, is written down, and gets no answer."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _NoteDown)


class _NoteDown(StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Proxy)
        self.server.asked.append(self.rfile.readline().decode(errors="replace").strip())


def browse(chromium: str, profile: Path, page: Path, proxy: Proxy, *flags: str) -> subprocess.CompletedProcess[str]:
    # Without <-loopback> what a page asks of this very machine would go past the proxy.
    through = (f"--proxy-server=http://127.0.0.1:{proxy.server_address[1]}", "--proxy-bypass-list=<-loopback>")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *QUIET, *through,
               "--enable-logging=stderr", "--hide-scrollbars", *flags, page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)


def asked_for_page(proxy: Proxy) -> list[str]:
    """Every request but the browser's own errand, which goes to a host that is no other's."""
    return [line for line in proxy.asked if not line.startswith(f"POST {ACCOUNTS}/")]


def probed(page: Path, script: str) -> Path:
    """A copy of the page that runs `script` and has what it returns as its title: the page's own policy allows none but its own."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy = page.with_name("probed.html")
    probe = f"<script>document.title = JSON.stringify((() => {{ {script} }})());</script>"
    copy.write_text(html.replace("</body>", f"{probe}</body>"))
    return copy


def answer(chromium: str, page: Path, proxy: Proxy, tmp_path: Path, script: str, *flags: str) -> object:
    done = browse(chromium, tmp_path / "profile", probed(page, script), proxy, "--dump-dom", *flags)
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    return json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
