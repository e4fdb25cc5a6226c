"""A stand-in for PostHog's Query API: HogQL's rules for placeholders, zones and limits, over a real ClickHouse."""

import json
import re
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from chdb import session

KEY, UNSCOPED_KEY, PROJECT = "phx_the_key_of_the_stand_in", "phx_a_key_without_scope", 7
ZONE = "Europe/Berlin"  # the project's, with daylight saving
TEAM = 2

# The table of posthog/models/event/sql.py, without the columns that nothing asks for.
TABLE = """
CREATE TABLE events (
    uuid UUID, event String, properties String, timestamp DateTime64(6, 'UTC'), team_id Int64, distinct_id String,
    created_at DateTime64(6, 'UTC'), person_properties String, _timestamp DateTime DEFAULT now()
) ENGINE = ReplacingMergeTree(_timestamp)
PARTITION BY toYYYYMM(timestamp)
ORDER BY (team_id, toDate(timestamp), event, cityHash64(distinct_id), cityHash64(uuid))
"""


class Refused(Exception):
    def __init__(self, status, detail):
        super().__init__(detail)
        self.status, self.detail = status, detail


class Posthog:
    """The stand-in. `before` is called before each query. `fault` may return a function that answers in its place."""

    def __init__(self):
        self.session = session.Session()
        self.session.query("CREATE DATABASE ph ENGINE = Atomic")
        self.session.query("USE ph")
        self.session.query(TABLE)
        self.session.query("SYSTEM STOP MERGES events")  # rows that stand twice stay so
        self.lock = threading.Lock()
        self.max_rows = 300
        self.knows_refresh_modes = self.knows_modifiers = True
        self.fault = lambda number: None
        self.before = lambda number, query: None
        self.texts, self.count, self.asked_ids = Counter(), 0, 0
        handler = type("Handler", (Handler,), {"posthog": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.handle_error = lambda *_: None  # whoever is interrupted hangs up
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def insert(self, rows):
        """Rows of (uuid, event, properties, timestamp, team_id, distinct_id, created_at, person_properties)."""
        names = "uuid, event, properties, timestamp, team_id, distinct_id, created_at, person_properties".split(", ")
        lines = "\n".join(json.dumps(dict(zip(names, row))) for row in rows)
        with self.lock:
            self.session.query(
                "INSERT INTO events (" + ", ".join(names) + ") SETTINGS date_time_input_format='best_effort' "
                "FORMAT JSONEachRow\n" + lines
            )

    def answer(self, body):
        query = body.get("query", {})
        if unknown := (body.keys() - {"query", "refresh"}) | (query.keys() - {"kind", "query", "values", "modifiers"}):
            raise Refused(400, f"extra inputs are not permitted: {', '.join(unknown)}")
        modes = {"force_blocking"} if self.knows_refresh_modes else {True}
        if body.get("refresh") not in modes:
            raise Refused(400, "refresh: the value could not be parsed")
        if "modifiers" in query and not self.knows_modifiers:
            raise Refused(400, "query: extra inputs are not permitted")
        self.texts[re.sub(r"LIMIT \d+", "LIMIT 1", query["query"])] += 1
        with self.lock:
            try:
                result = json.loads(str(self.session.query(self.print(query), "JSONCompact")))
            except RuntimeError as error:
                raise Refused(400, str(error)[:500]) from error
        return {
            "results": result["data"],
            "columns": [column["name"] for column in result["meta"]],
            "error": None,
            "is_cached": False,
            "hasMore": False,
        }

    def print(self, query):
        """HogQL to ClickHouse's SQL, for as much of it as is asked."""
        text = query["query"]
        if re.search(r"\b(OFFSET|FINAL)\b", text):
            raise Refused(400, "OFFSET and FINAL are not allowed")
        values = query.get("values", {})
        unused = set(values)

        def value(match):
            unused.discard(match[1])
            if match[1] not in values:
                raise Refused(400, f"placeholder {match[1]} has no value")
            return "'" + values[match[1]].replace("\\", "\\\\").replace("'", "\\'") + "'"

        select, rest = text.split(" FROM events WHERE ")
        # Selected times are in the project's zone; conditions use the bare column, so that partitions can be pruned.
        select = re.sub(r"\b(timestamp|created_at)\b", rf"toTimeZone(\1, '{ZONE}')", select)
        text = f"{select} FROM events WHERE team_id = {TEAM} AND {rest}"
        text = re.sub(r"toDateTime\(([^()]*)\)", rf"parseDateTime64BestEffort(\1, 6, '{ZONE}')", text)
        text = text.replace("person.properties", "person_properties")
        text = re.sub(r"\{(\w+)\}", value, text)
        limit = re.search(r" LIMIT (\d+)$", text)
        rows = min(int(limit[1]) if limit else 100, self.max_rows)
        return re.sub(r" LIMIT \d+$", "", text) + f" LIMIT {rows}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = self.posthog.count = self.posthog.count + 1
        self.posthog.before(number, body["query"]["query"])
        if fault := self.posthog.fault(number):
            return fault(self)
        try:
            self.authenticate()
            self.reply(200, self.posthog.answer(body))
        except Refused as refused:
            self.reply(refused.status, {"type": "error", "code": "error", "detail": refused.detail, "attr": None})

    def authenticate(self):
        key = self.headers["authorization"]
        if key == f"Bearer {UNSCOPED_KEY}":
            raise Refused(403, "API key missing required scope 'query:read'")
        if key != f"Bearer {KEY}":
            raise Refused(401, "Invalid personal API key.")
        if self.path != f"/api/projects/{PROJECT}/query/":
            raise Refused(404, "Project not found.")

    def reply(self, status, body, headers=(), cut=False):
        text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text[: len(text) // 2] if cut else text)
        if cut:
            self.close_connection = True

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
