"""Fills the stand-in for PostHog with events of nasty shapes, lets the program fetch them, and compares what reaches Variance.

Usage: check.py PROGRAM QUERIES. The queries that the program has sent are written to the file QUERIES.
"""

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
from collections import Counter
from datetime import datetime, timedelta, timezone

from standin import KEY, PROJECT, TEAM, UNSCOPED_KEY, Posthog

EVENTS = 50_000
START = time.monotonic()
random.seed(1)


class Variance(threading.Thread):
    """A stand-in that takes everything and counts it by id and name."""

    def __init__(self):
        super().__init__(daemon=True)
        self.received, self.messages, self.started = Counter(), {}, threading.Event()
        self.start()
        self.started.wait()

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hooks/posthog"
        self.started.set()
        await server.serve_forever()

    async def connection(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
                message = json.loads(await reader.readexactly(length))
                self.received[message["messageId"], message.get("event", message["type"])] += 1
                self.messages[message["messageId"]] = message
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def stamp(time):
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def utc(*parts):
    return datetime(*parts, tzinfo=timezone.utc)


def properties(number):
    """As JSON text. Some are large, some hold what a JSON library would change or refuse."""
    match number % 20:
        case 0:
            return r'{"n":18446744073709551617,"half":"cut \ud83d","exp":1.50E+400}'
        case 1:
            return json.dumps({"quote": "\" \\ ' {v0} \n \u2028 \U0001f680", "%": "_"}, ensure_ascii=False)
        case 2 if number % 5000 == 2:
            return json.dumps({"large": "x" * 900_000})
        case 3:
            return json.dumps({"$set": {"plan": "team"}, "$current_url": "https://example.com/?q"})
        case _:
            return json.dumps({"number": number, "text": "x" * random.randrange(50)})


def make_events():
    """Rows of a year: what is forwarded, and beside it what is not."""
    spring, autumn, start = utc(2025, 3, 30, 1), utc(2025, 10, 26, 0, 30), utc(2025, 1, 1)
    names = ["plan upgraded", "signed up", "100%_off", "caf\u00e9 \U0001f680", "it's \"quoted\" \\", "$pageview", "$identify", "$set"]
    events = []
    for number in range(EVENTS):
        if number < 5_000:
            happened = spring  # thousands share one microsecond
        elif number < 8_000:
            happened = spring + timedelta(microseconds=random.randrange(-5, 5))
        elif number < 12_000:
            happened = autumn + timedelta(seconds=random.randrange(3600 * 2))  # an hour that the zone has twice
        elif number < 14_000:
            happened = utc(2025, random.randrange(1, 13), 1) + timedelta(microseconds=random.randrange(-2, 2))
        else:
            happened = start + timedelta(microseconds=random.randrange(365 * 86_400 * 1_000_000))
        happened = max(start, min(happened, utc(2026, 1, 1) - timedelta(microseconds=1)))
        created = happened + timedelta(seconds=random.choice([1, 1, 1, 3600, 5 * 86_400]))
        person = random.choice(["", "{}", '{"email":"ada@example.com"}'])
        row = [str(uuid.uuid4()), random.choice(names), properties(number), stamp(happened), TEAM, f"user {number % 100}"]
        events.append(row + [stamp(created), person])
    for row in events[4_000:4_200]:  # one uuid and time, two names
        events.append([row[0], "its twin", *row[2:]])
    return events


def late_events(count, happened, taken_in=None):
    """Rows that PostHog took in just now, or at another time."""
    taken_in = stamp(taken_in or datetime.now(timezone.utc))
    return [[str(uuid.uuid4()), "late", "{}", stamp(happened), TEAM, "x", taken_in, ""] for _ in range(count)]


def key(row):
    name = {"$pageview": "page", "$identify": "identify", "$set": "identify"}.get(row[1], row[1])
    return row[0], name


class Run:
    """One run of the program, and what it has said."""

    def __init__(self, program, posthog, variance, *arguments, key=KEY, project=PROJECT, log=None, **variables):
        environment = {
            "PATH": os.environ["PATH"],
            "VARIANCE_WEBHOOK_URL": variance.url,
            "VARIANCE_AUTHORIZATION": "Bearer a-credential",
            "POSTHOG_URL": posthog.url,
            "POSTHOG_PROJECT_ID": str(project),
            "POSTHOG_API_KEY": key,
            **variables,
        }
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        command = [program, "backfill", "--from-posthog", *arguments]
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.log = log

    def end(self):
        self.out, self.err = self.process.communicate(self.log, timeout=600)
        self.code = self.process.returncode
        if "panicked" in self.err:
            sys.exit(f"FAILED  {self.err}")
        return self

    def how_to_go_on(self):
        """The arguments of the command that an interruption has printed, at full speed."""
        command = self.err.split("To go on from here:\n  variance-connector backfill --from-posthog ")[-1].split("\n")[0].split()
        rate = command.index("--rate")
        return command[:rate] + command[rate + 2 :]


def check(condition, what, run=None):
    if not condition:
        sys.exit(f"FAILED  {what}" + (f"\n{run.out}\n{run.err[-5000:]}" if run else ""))
    print(f"ok      {what} ({time.monotonic() - START:.0f} s)", flush=True)


def once(variance, rows):
    """Whether exactly these arrived, each once."""
    expected = {key(row) for row in rows}
    missing, extra = expected - variance.received.keys(), variance.received.keys() - expected
    twice = [id for id, count in variance.received.items() if count > 1]
    if missing or extra or twice:
        print(f"{len(missing)} missing, {len(extra)} extra, {len(twice)} twice: {[*missing][:2]} {[*extra][:2]} {twice[:2]}")
    return not (missing or extra or twice)


def main(program, queries):
    # If PostHog cannot be reached at the start, the program gives up after half a minute.
    with socket.create_server(("127.0.0.1", 0)) as closed:
        away = types.SimpleNamespace(url=f"http://127.0.0.1:{closed.getsockname()[1]}")
    away = Run(program, away, types.SimpleNamespace(url="http://127.0.0.1:9/"), "--since", "2025-01-01")
    posthog, events = Posthog(), make_events()
    others = [[str(uuid.uuid4()), name, "{}", row[3], team, "x", row[6], ""] for row in events[:2_000]
              for name, team in [("$autocapture", TEAM), ("of another team", TEAM + 1)]]
    edges = [[str(uuid.uuid4()), "edge", "{}", stamp(time), TEAM, "x", stamp(time), ""]
             for time in [utc(2024, 12, 31, 23, 59, 59, 999_999), utc(2026, 1, 1)]]
    posthog.insert(events + others + edges)
    posthog.insert(events[::7])  # rows that stand twice
    year = ["--since", "2025-01-01", "--until", "2026-01-01T00:00:00Z"]

    # The whole year, with every kind of fault, fewer rows than were asked for, and late arrivals.
    # PostHog took the late ones in meanwhile, and the hidden ones long before they could be read.
    late, hidden = late_events(40, utc(2025, 1, 2, 12)), late_events(30, utc(2025, 1, 3), taken_in=utc(2025, 1, 3))
    faults = [
        lambda handler: handler.reply(429, {"detail": "Request was throttled."}, [("retry-after", "1")]),
        lambda handler: handler.reply(503, {"detail": "at capacity"}),
        lambda handler: handler.reply(504, {"detail": "Query has hit the max execution time"}),
        lambda handler: handler.reply(500, "<html>Internal Server Error</html>"),
        lambda handler: handler.reply(512, {"detail": "estimated to be too slow"}),
        lambda handler: handler.reply(200, {"results": [], "columns": []}, cut=True),
        lambda handler: handler.hang_up(),
    ]
    posthog.fault = lambda number: faults[number // 20 % len(faults)] if number % 20 == 10 else None
    posthog.before = lambda number, _: posthog.insert(late + hidden) if number == 60 else None
    posthog.knows_refresh_modes = posthog.knows_modifiers = False  # as older versions
    variance, began = Variance(), time.monotonic()
    run = Run(program, posthog, variance, *year).end()
    seconds = time.monotonic() - began
    check(run.code == 0, "a year of 50,000 events is read to its end", run)
    check(once(variance, events + late + hidden), "each arrives once: of one microsecond, standing twice, at either change of the clocks, late", run)
    count = len(events) + len(late) + len(hidden)
    check(run.out.startswith(f"{count:,} events read = {count:,} delivered + 0 filtered + 0 refused + 0 invalid\n"), "the summary adds up", run)
    check("2025-01-02 has 40 more events by now: reading what PostHog took in since" in run.err, "late events are read", run)
    check("2025-01-03 has 30 more events by now: reading all of it again" in run.err, "and so are hidden ones", run)
    check(run.err.count("reading all of it again") == 1, "which alone cost a day that is read again", run)
    print(f"        {posthog.count} queries, {count / seconds:,.0f} events per second")
    message = next(variance.messages[row[0]] for row in events if row[2].startswith('{"n":1844'))
    check(message.get("properties", {}).get("half", "cut \ud83d") == "cut \ud83d", "half a character passes", run)
    posthog.fault, posthog.before = lambda number: None, lambda number, query: None
    posthog.knows_refresh_modes = posthog.knows_modifiers = True

    # An outage: events are selected by when PostHog took them in.
    variance = Variance()
    outage = ["--since", "2025-10-26T00:30Z", "--until", "2025-10-26T01:30Z", "--ingested"]
    run = Run(program, posthog, variance, *outage, CONNECTOR_PERSON_TRAITS="true").end()
    taken_in = [row for row in events if "2025-10-26T00:30:00" <= row[6] < "2025-10-26T01:30:00"]
    check(run.code == 0 and once(variance, taken_in), f"what came in during an outage arrives once ({len(taken_in)} events)", run)
    check(f"PostHog has {len(taken_in):,} events" in run.err, "how many these are is said beforehand", run)
    check(any("traits" in message["context"] for message in variance.messages.values()), "persons come along", run)

    # An interruption, and the command that goes on from there.
    variance = Variance()
    run = Run(program, posthog, variance, *year, "--rate", "3000")
    while run.process.poll() is None and len(variance.received) < 3_000:
        time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    run.end()
    command = run.how_to_go_on()
    check(run.code == 1 and "--after" in command and len(variance.received) < 20_000, "an interruption says how to go on", run)
    run = Run(program, posthog, variance, *command).end()
    again = sum(variance.received.values()) - len(variance.received)
    expected = {key(row) for row in events + late + hidden}
    check(run.code == 0 and variance.received.keys() == expected, "the command goes on, and nothing is left out", run)
    check(again <= 512, f"what was in flight at most comes a second time ({again} events)", run)

    # The same while late events are read.
    variance, later = Variance(), late_events(2_000, utc(2025, 3, 30, 12)) + late_events(20, utc(2025, 3, 31))
    since, until = stamp(utc(2025, 3, 30)), stamp(utc(2025, 5, 1))
    in_range = [row for row in events + later if since <= row[3] < until]
    first, left = posthog.count + 1, [later]  # they come in before the second count
    posthog.before = lambda number, query: posthog.insert(left.pop()) if left and number > first and "ev_day" in query else None
    run = Run(program, posthog, variance, "--since", since, "--until", until, "--rate", "2000")
    while run.process.poll() is None and sum(name == "late" for _, name in [*variance.received]) < 500:
        time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    run.end()
    command = run.how_to_go_on()
    check("--ingested-since" in command and len(variance.received) < len(in_range), "an interruption among late events says so", run)
    run = Run(program, posthog, variance, *command).end()
    again = [key for key, count in variance.received.items() if count > 1]
    check(run.code == 0 and variance.received.keys() == {key(row) for row in in_range}, "the late ones that are left come, too", run)
    check(len(again) <= 512 and all(name == "late" for _, name in again), f"and no other a second time ({len(again)} in flight)", run)
    posthog.before = lambda number, query: None

    # The events that the log names as lost.
    variance = Variance()
    lost = random.sample(events, 450)
    unknown = str(uuid.uuid4())
    ids = [row[0] for row in lost] + ["no-uuid", unknown]
    lines = ["INFO variance_connector: ready address=127.0.0.1:8080"]
    for index in range(0, len(ids), 100):
        uuids = " ".join(ids[index : index + 100])
        lines.append(json.dumps({"timestamp": "2025-12-24T00:00:00Z", "level": "ERROR", "message": "events are lost", "uuids": uuids}))
    run = Run(program, posthog, variance, "--lost", "-", log="\n".join(lines)).end()
    named = {row[0] for row in lost}
    check(once(variance, [row for row in events if row[0] in named]), "what the log names arrives once, however old", run)
    check(run.code == 1 and f"PostHog does not have {unknown}\n" in run.err and "no-uuid" in run.err, "what PostHog does not have is named", run)
    run = Run(program, posthog, variance, "--lost", "-", log=lines[0]).end()
    check(run.code == 0 and "nothing is lost" in run.out, "a log without losses is no error", run)

    # A run that cannot work ends at once.
    for arguments, says in [
        (dict(key="phx_wrong"), "posthog.api_key: it must be a personal API key"),
        (dict(key=UNSCOPED_KEY), "give it query:read"),
        (dict(project=8), "There is no project 8"),
    ]:
        run = Run(program, posthog, variance, *year, **arguments).end()
        check(run.code == 1 and says in run.err and arguments.get("key", "phx") not in run.err.replace("(phx_", ""), says, run)

    away.end()
    check(away.code == 1 and "Is posthog.url the address of PostHog?" in away.err, "a PostHog that is not there is given up", away)

    with open(queries, "w") as file:
        json.dump(sorted(posthog.texts), file)
    # This does not wait for ClickHouse's threads.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
