"""Runs the program in front of a stand-in for Variance, lets each SDK send, and compares what arrives.

Usage: check.py PROGRAM NAME=COMMAND…. Each command is given the connector's URL and the project key.
"""

import http.server
import json
import os
import subprocess
import sys
import threading

TOKEN = "a-token-for-the-senders"
AUTHORIZATION = "Bearer a-credential-for-variance"
SECONDS = 60

# The messages that must arrive from each sender, whatever else they contain.
EXPECTED = [
    {
        "type": "track",
        "event": "plan upgraded",
        "userId": "user_1",
        "properties": {"plan": "team", "note": "caf\u00e9 \U0001f680"},
    },
    {"type": "identify", "userId": "user_1", "traits": {"email": "ada@example.com"}},
    {"type": "identify", "userId": "user_1", "traits": {"plan": "team"}},
    {"type": "alias", "userId": "user_1", "previousId": "anon_1"},
    {
        "type": "page",
        "userId": "user_1",
        "properties": {"url": "https://example.com/?ref=nav", "search": "?ref=nav"},
    },
    {"type": "group", "groupId": "acme", "traits": {"posthog_group_type": "company", "tier": "gold"}},
]
ALWAYS = {"messageId", "timestamp", "sentAt", "type", "context"}


class Variance(http.server.BaseHTTPRequestHandler):
    """The stand-in: takes every message and keeps it."""

    protocol_version = "HTTP/1.1"
    received = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.headers["Authorization"], json.loads(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def start(program, variance):
    environment = {
        "PATH": os.environ["PATH"],
        "VARIANCE_WEBHOOK_URL": variance,
        "VARIANCE_AUTHORIZATION": AUTHORIZATION,
        "CONNECTOR_TOKEN": TOKEN,
        "CONNECTOR_LISTEN": "127.0.0.1:0",
        "CONNECTOR_CALLS": "capture,page,identify,alias,group",
        "CONNECTOR_LOG_FORMAT": "json",
    }
    connector = subprocess.Popen([program], env=environment, stderr=subprocess.PIPE, text=True)
    for line in connector.stderr:
        if address := json.loads(line).get("address"):
            threading.Thread(target=connector.stderr.read, daemon=True).start()
            return connector, f"http://{address}"
    raise SystemExit("the connector did not start")


def send(command, url, key):
    # Variables that others have set must not lead the SDKs elsewhere.
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    arguments = [*command.split(" "), url, key]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SECONDS)


def check(name, command, url):
    Variance.received.clear()
    wrong = send(command, url, "a-wrong-key-for-the-senders")
    assert wrong.returncode != 0, f"{name} took a refusal for success"
    assert not Variance.received, f"{name} got in with a wrong key: {Variance.received}"

    sent = send(command, url, TOKEN)
    assert sent.returncode == 0, f"{name}: {sent.stderr}"
    assert {authorization for authorization, _ in Variance.received} == {AUTHORIZATION}
    messages = [message for _, message in Variance.received]
    assert len(messages) == len(EXPECTED), f"{name}: {messages}"
    assert all(ALWAYS <= message.keys() for message in messages), f"{name}: {messages}"
    for expected in EXPECTED:
        fitting = [message for message in messages if all(message.get(key) == value for key, value in expected.items())]
        assert len(fitting) == 1, f"{name}: {messages} has no {expected}"
    made_up = [message for message in messages if str(message.get("userId", "")).startswith("$")]
    assert not made_up, f"{name}: an id of a group passes for a contact: {made_up}"
    print(f"ok       {name}: all five calls, and none with a wrong key")


def main():
    program, *senders = sys.argv[1:]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Variance)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connector, url = start(program, f"http://127.0.0.1:{server.server_port}/hooks/posthog")
    try:
        for sender in senders:
            name, command = sender.split("=", 1)
            check(name, command, url)
    finally:
        connector.terminate()
        connector.wait(timeout=SECONDS)


main()
