"""Runs the commands of the documentation. Usage: check.py FOLDER_OF_THE_PROGRAM"""

import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
CREDENTIAL = "Bearer " + "0123456789" * 3 + "81"
TOKEN = "0123456789" * 3 + "24"
SECRET = "whsec_" + "QUJD" * 10
# The inputs of docs/tools.md: a capture, a filtered event, a line that is cut off, an alias, and a capture that Variance refuses.
MIXED = """\
{"uuid": "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b11", "event": "plan upgraded", "distinct_id": "user_42", \
"timestamp": "2026-08-20T09:14:03.512000+00:00", "properties": {"plan": "team", "seats": 12}}
{"uuid": "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b12", "event": "$autocapture", "distinct_id": "user_42", "properties": {}}
{"uuid": "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b13", "event": "cut of
{"uuid": "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b14", "event": "$create_alias", "distinct_id": "user_42", \
"properties": {"alias": "anon_1"}}
{"uuid": "0198c4c1-6c1e-7d3a-9b54-2f1c7e0a4b15", "event": "refused", "distinct_id": "user_42", "properties": {}}
"""


class Variance(http.server.BaseHTTPRequestHandler):
    """Accepts what has the right credential, but for events named `refused`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = 422 if body.get("event") == "refused" else 200
        self.send_response(status if self.headers["Authorization"] == CREDENTIAL else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def blocks(page, language):
    """The blocks of code of a page in this language."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def block_with(page, language, part):
    [block] = [block for block in blocks(page, language) if part in block]
    return block


def shell(script, folder, environment):
    """Runs a script. Returns all that it prints."""
    ended = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=60, check=False,
    )
    return ended.stdout


def essence(line):
    """A line without what differs from run to run: widths of columns, ports and times."""
    line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", line)
    line = re.sub(r"^It took .*", "It took TIME", line)
    return re.sub(r" +", " ", line).strip()


def compare(page, command, printed, expected):
    """Fails if some line of what is expected was not printed, in that order. A line `…` stands for any others."""
    printed, at = [essence(line) for line in printed.splitlines()], 0
    for line in map(essence, expected):
        if line == "…":
            continue
        if line not in printed[at:]:
            sys.exit(f"{page}: `{command}` does not print\n  {line}\nbut\n  " + "\n  ".join(printed))
        at += printed[at:].index(line) + 1
    print(f"ok       {page}: {command}")


def main():
    programs = sys.argv[1]
    variance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Variance)
    threading.Thread(target=variance.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{variance.server_port}/hook?a=123456"
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "VARIANCE_WEBHOOK_URL": url,
        "VARIANCE_AUTHORIZATION": CREDENTIAL,
        "NO_PROXY": "127.0.0.1",
    }
    with tempfile.TemporaryDirectory() as folder:
        tour(folder, environment)
        (pathlib.Path(folder) / "mixed.jsonl").write_text(MIXED)
        (pathlib.Path(folder) / "token").write_text(TOKEN)
        (pathlib.Path(folder) / "connector.toml").write_text(
            "[server]\nlisten = '0.0.0.0:8080'\ntoken_file = 'token'\n[delivery]\nshutdown_grace = '25s'\n"
        )
        consoles(folder, environment)


def tour(folder, environment):
    """README's way to a first event, and the signature by hand of docs/security.md."""
    secrets = {"CONNECTOR_TOKEN": TOKEN, "CONNECTOR_SIGNING_SECRET": SECRET}
    service = subprocess.Popen(
        ["variance-connector", "--listen", "127.0.0.1:0", "--log-format", "json"],
        cwd=folder, env=environment | secrets, stderr=subprocess.PIPE, text=True,
    )
    try:
        address = next(line["address"] for line in map(json.loads, service.stderr) if line["message"] == "ready")
        threading.Thread(target=service.stderr.read, daemon=True).start()
        here = environment | secrets | {"CONNECTOR_LISTEN": address}
        for page, part, expected in [
            ("README.md", "curl --json", '"delivered":1,'),
            ("README.md", "/variance-connector status\n", "up"),
            ("docs/security.md", "openssl dgst", '"delivered":1,'),
        ]:
            script = block_with(page, "sh", part)
            script = script.replace("docker exec variance-connector /usr/local/bin/", "").replace("127.0.0.1:8080", address)
            printed = shell(script, folder, here)
            if expected not in printed:
                sys.exit(f"{page}: {script}prints\n{printed}and not {expected}")
            print(f"ok       {page}: {script.splitlines()[-1]}")
    finally:
        service.terminate()
        service.wait(timeout=60)


def consoles(folder, environment):
    """The commands of docs/tools.md, and what it says that they print."""
    page = "docs/tools.md"
    for block in blocks(page, "console"):
        if "--from-posthog" in block or "^C" in block:
            continue
        for command, *expected in (part.splitlines() for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]):
            # The example of `check` has a wrong credential, and runs in a container.
            wrong = {"VARIANCE_AUTHORIZATION": CREDENTIAL[:-3] + "x81", "container": "oci"} if "check" in command else {}
            compare(page, command, shell(command, folder, environment | wrong), expected)


main()
