"""Runs the proxy of compose.yaml, with a real Caddy, on a Caddyfile shaped like PostHog's, and asks it for pages.

Usage: check_route.py COMPOSE_FILE CADDY. Passes if the two POST routes lead to the connector, PostHog's own routes still
lead to PostHog, and nothing else of the connector can be reached.
"""

import http.client
import http.server
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import yaml

POSTHOG = """{
}
http://127.0.0.1:PORT {
    @capture {
        path /batch
        path /batch/*
    }

    handle @capture {
        respond "capture"
    }

    handle {
        respond "web"
    }
}
"""
EXPECTED = {
    "/variance/webhook": "connector /webhook",
    "/variance/webhook/": "connector /webhook/",
    "/variance/batch": "connector /batch",
    "/variance/batch/": "connector /batch/",
    "/variance/metrics": 404,
    "/variance/healthz": 404,
    "/variance/readyz": 404,
    "/variance/webhook/../metrics": 404,
    "/variance//metrics": 404,
    "/batch/": "capture",
    "/webhook": "web",
    "/": "web",
}


class Connector(http.server.BaseHTTPRequestHandler):
    """Answers with the path that it was asked for."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"connector {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def compose(text):
    """Undoes Compose's escape; whatever else has a dollar would be taken for one of Compose's variables."""
    if re.search(r"(?<!\$)\$(?!\$)", text.replace("$$", "")):
        sys.exit(f"compose.yaml: a single $ in {text!r}")
    return text.replace("$$", "$")


def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("POST", path, body="{}")
    reply = connection.getresponse()
    body = reply.read().decode()
    return body if reply.status == 200 else reply.status


def main(compose_file, caddy):
    with open(compose_file, encoding="utf-8") as file:
        proxy = yaml.safe_load(file)["services"]["proxy"]
    route = compose(proxy["environment"]["VARIANCE_ROUTE"])
    option, script = map(compose, proxy["command"])

    connector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Connector)
    threading.Thread(target=connector.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PATH": f"{os.path.dirname(os.path.abspath(caddy))}:{os.environ['PATH']}",
            "HOME": folder,
            "CADDYFILE": POSTHOG.replace("PORT", str(port)).replace("{\n", "{\n    admin off\n", 1),
            "VARIANCE_ROUTE": route.replace("variance-connector:8080", f"127.0.0.1:{connector.server_port}"),
        }
        with open(f"{folder}/log", "w+", encoding="utf-8") as log:
            running = subprocess.Popen(
                ["sh", option, script.replace("/etc/caddy", folder)], env=environment, stdout=log, stderr=log
            )
            try:
                got = {}
                deadline = time.monotonic() + 20
                while not got:
                    try:
                        got = {path: ask(port, path) for path in EXPECTED}
                    except ConnectionRefusedError:
                        if running.poll() is not None or time.monotonic() > deadline:
                            break
                        time.sleep(0.05)
            finally:
                running.terminate()
                running.wait()
            wrong = [f"{path}: {got.get(path)!r}, not {want!r}" for path, want in EXPECTED.items() if got.get(path) != want]
            if wrong:
                log.seek(0)
                sys.exit("\n".join([log.read(), "compose.yaml: the proxy leads elsewhere:", *wrong]))


if __name__ == "__main__":
    main(*sys.argv[1:])
