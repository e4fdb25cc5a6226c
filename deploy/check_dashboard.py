"""Runs the connector, a stand-in for Variance and a real Prometheus, sends traffic, and asks every query of the dashboard.

Usage: check_dashboard.py CONNECTOR PROMETHEUS. Passes if each query returns figures, and if Prometheus evaluates each rule
of alerts.yaml without an error.
"""

import http.client
import http.server
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

TOKEN = "a-token-of-this-check"
TIMEOUT = 60


class Variance(http.server.BaseHTTPRequestHandler):
    """Refuses the events called "refused", and takes the others unless it is down."""

    is_down = False

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = 400 if event.get("event") == "refused" else 200
        self.send_response(503 if Variance.is_down else refused)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def ask(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body=body, headers=headers or {})
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def until(what, condition):
    """Waits for a condition that should come true soon."""
    deadline = time.monotonic() + TIMEOUT
    while not (value := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {TIMEOUT} s")
        time.sleep(0.1)
    return value


def send(port, path, events, token=TOKEN):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return ask(port, "POST", path, json.dumps(events), headers)[0]


def traffic(port):
    """Something of everything: delivered, refused, filtered, invalid and re-sent events, strangers, and an outage."""
    number = 0
    for _ in range(5):
        events = []
        for name in ["signed up", "$pageview", "$identify", "refused", "$autocapture"]:
            number += 1
            events.append({"event": name, "uuid": f"event {number}", "distinct_id": "d"})
        assert send(port, "/webhook", events) == 200
        assert send(port, "/batch", events + [{}]) == 200
        assert send(port, "/webhook", events[0], token="another-token-of-this-check") == 401
        time.sleep(1)
    Variance.is_down = True
    late = [{"event": "late", "uuid": f"late {n}", "distinct_id": "d"} for n in range(10)]
    assert send(port, "/webhook", late) == 503
    until("a pause", lambda: '"paused"' in ask(port, "GET", "/readyz")[1])
    Variance.is_down = False
    until("what was held", lambda: json.loads(ask(port, "GET", "/readyz")[1])["held"]["events"] == 0)
    assert send(port, "/batch", late) == 200


def queries(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], expr.replace("$job", ".*").replace("$instance", ".*")


def query(prometheus, expr):
    """The figures of a query, those that are none left out."""
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": expr})
    reply = json.loads(ask(prometheus, "GET", path)[1])
    if reply["status"] != "success":
        sys.exit(f"{expr}\n{reply}")
    return [series for series in reply["data"]["result"] if not math.isnan(float(series["value"][1]))]


def start_connector(connector, variance):
    environment = {
        "VARIANCE_WEBHOOK_URL": f"http://127.0.0.1:{variance}/",
        "VARIANCE_AUTHORIZATION": "Bearer variance",
        "CONNECTOR_TOKEN": TOKEN,
        "CONNECTOR_LISTEN": "127.0.0.1:0",
        "CONNECTOR_LOG_FORMAT": "json",
    }
    running = subprocess.Popen([connector], env=environment, stderr=subprocess.PIPE, text=True)
    for line in running.stderr:
        if address := json.loads(line).get("address"):
            threading.Thread(target=running.stderr.read, daemon=True).start()
            return running, int(address.rsplit(":", 1)[1])
    sys.exit("the connector did not start")


def start_prometheus(prometheus, folder, connector, log):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [os.path.abspath("alerts.yaml")],
        "scrape_configs": [{"job_name": "check", "static_configs": [{"targets": [f"127.0.0.1:{connector}"]}]}],
    }
    with open(f"{folder}/prometheus.yml", "w", encoding="utf-8") as file:
        json.dump(configuration, file)  # JSON is YAML
    command = [
        prometheus,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    return subprocess.Popen(command, stdout=log, stderr=log), port


def is_ready(port):
    try:
        return ask(port, "GET", "/-/ready")[0] == 200
    except OSError:
        return False


def main(connector, prometheus):
    with open("grafana-dashboard.json", encoding="utf-8") as file:
        wanted = list(queries(json.load(file)))
    variance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Variance)
    threading.Thread(target=variance.serve_forever, daemon=True).start()
    running = []
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+", encoding="utf-8") as log:
        try:
            process, port = start_connector(connector, variance.server_port)
            running.append(process)
            process, prometheus_port = start_prometheus(prometheus, folder, port, log)
            running.append(process)
            until("Prometheus", lambda: is_ready(prometheus_port))
            until("the first figures", lambda: query(prometheus_port, "variance_connector_build_info"))
            traffic(port)
            # Recent events show only after the next scrape.
            empty = wanted
            deadline = time.monotonic() + TIMEOUT
            while empty and time.monotonic() < deadline:
                empty = [(title, expr) for title, expr in empty if not query(prometheus_port, expr)]
            rules = json.loads(ask(prometheus_port, "GET", "/api/v1/rules")[1])["data"]["groups"]
            broken = [rule for group in rules for rule in group["rules"] if rule["health"] != "ok"]
        finally:
            for process in running:
                process.terminate()
                process.wait()
    if empty or broken or not rules:
        sys.exit("\n".join([*(f"no figures for {title!r}: {expr}" for title, expr in empty), *map(str, broken)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
