"""Runs the commands of the documentation. Usage: check.py FOLDER_OF_THE_PROGRAM

Every block of commands is run, here or by `cargo test`, or the text before it says what the commands need that is not
here, such as Docker.
"""

import gzip
import http.server
import json
import os
import pathlib
import re
import signal
import socket
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


# What a page says of commands that cannot be run here.
NEEDS = re.compile(r"needs (Docker|Kubernetes|a personal API key)")
# `cargo test` runs the commands of this page, and compares what they print.
RUN_BY_CARGO = "docs/accounts-and-contacts.md"

has_posted = threading.Event()
run = set()


class Variance(http.server.BaseHTTPRequestHandler):
    """Accepts what has the right credential, but for events named `refused`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        has_posted.set()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = 422 if body.get("event") == "refused" else 200
        self.send_response(status if self.headers["Authorization"] == CREDENTIAL else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def blocks(page, language):
    """The blocks of code of a page in this language, each with the paragraph before it."""
    text = (ROOT / page).read_text()
    found = re.findall(rf"((?:^[^\n]+\n)*)^\n*( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [(before, re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)) for before, indent, block in found]


def block_with(page, language, part):
    [block] = [block for _, block in blocks(page, language) if part in block]
    run.add((page, block))
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


def without_numbers(line):
    """The essence of a line that also has other counts each time."""
    return re.sub(r"\d[\d,]*", "N", essence(line))


def compare(page, command, printed, expected, essence=essence):
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
        demo(folder, environment)
        tour(folder, environment)
        install(folder, environment, url)
        (pathlib.Path(folder) / "mixed.jsonl").write_text(MIXED)
        (pathlib.Path(folder) / "token").write_text(TOKEN)
        (pathlib.Path(folder) / "connector.toml").write_text(
            "[server]\nlisten = '0.0.0.0:8080'\ntoken_file = 'token'\n[delivery]\nshutdown_grace = '25s'\n"
        )
        consoles(folder, environment)
        interrupted(folder, environment)
    nothing_is_left_out()


def demo(folder, environment):
    """README's demonstration, and what README says that it prints."""
    page = "README.md"
    command = block_with(page, "sh", "-- demo").splitlines()[0].replace("cargo run --release --", "variance-connector")
    [expected] = [block for _, block in blocks(page, "text") if "● a user upgrades" in block]
    compare(page, command, shell(command, folder, environment), expected.splitlines())


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


def install(folder, environment, url):
    """The first commands of docs/install.md, with the program that is built already."""
    page = "docs/install.md"
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = block_with(page, "sh", "cargo build --release\n")
    for shown, real in [
        ("cargo build --release\n", ""),
        ("https://…", url),
        ("Bearer …", CREDENTIAL),
        ("target/release/", ""),
        ("127.0.0.1:8080", address),
    ]:
        assert shown in script, shown
        script = script.replace(shown, real)
    # The service would stay, and so it is ended.
    printed = shell(script + "kill $!; wait\n", folder, environment | {"CONNECTOR_LISTEN": address})
    if '"delivered":1,' not in printed:
        sys.exit(f"{page}: {script}prints\n{printed}")
    print(f"ok       {page}: {script.splitlines()[0]} …")


def interrupted(folder, environment):
    """The backfill of docs/tools.md that Ctrl-C ends. The terminal echoes the `^C`."""
    page = "docs/tools.md"
    command, *expected = block_with(page, "console", "^C").replace("^C", "").removeprefix("$ ").splitlines()
    (pathlib.Path(folder) / "export-2025").mkdir()
    for month in (1, 2, 3):
        events = ('{"event": "e", "distinct_id": "d", "timestamp": "2025-%02d-01T00:00:00Z", "n": %d}' % (month, n) for n in range(5000))
        with gzip.open(f"{folder}/export-2025/2025-{month:02}.jsonl.gz", "wt") as file:
            file.write("\n".join(events))
    has_posted.clear()
    program = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert has_posted.wait(60), "nothing was posted"
    program.send_signal(signal.SIGINT)
    compare(page, command, program.communicate(timeout=60)[0], expected, without_numbers)


def nothing_is_left_out():
    """Fails if a page shows commands that are not run, and does not say what they need."""
    pages = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))]
    for page in pages:
        for before, block in blocks(page, "(?:sh|console|bash|shell)"):
            if page != RUN_BY_CARGO and (page, block) not in run and not NEEDS.search(" ".join(before.split())):
                sys.exit(f"{page}: this is not run, and the text before does not say what it needs:\n{block}")


def consoles(folder, environment):
    """The commands of docs/tools.md, and what it says that they print."""
    page = "docs/tools.md"
    for _, block in blocks(page, "console"):
        if "--from-posthog" in block or "^C" in block:
            continue
        run.add((page, block))
        for command, *expected in (part.splitlines() for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]):
            # The example of `check` has a wrong credential, and runs in a container.
            wrong = {"VARIANCE_AUTHORIZATION": CREDENTIAL[:-3] + "x81", "container": "oci"} if "check" in command else {}
            compare(page, command, shell(command, folder, environment | wrong), expected)


main()
