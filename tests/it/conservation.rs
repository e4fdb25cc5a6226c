//! Nothing is lost, invented or sent twice, whatever Variance does meanwhile. The runs are seeded, and send again by
//! PostHog's own rules at a tenth of its durations.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use futures_util::future;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use variance_connector::{backoff::Backoff, outbox::SuspectPacing};

use crate::{
    harness::{PATIENCE, Reply, Service, client},
    program,
    unread_log::{Program, TROUBLES},
    variance::{Accepting, Behaviour, Received, Variance},
};

/// The time for which to go on with new seeds, for example `30m`. Without it there are as many as CI has time for.
const RUN_FOR: &str = "CONSERVATION_RUN_FOR";

const SEEDS: u64 = 20;

/// The stand-in's record of the requests for one event.
#[derive(Debug, Default)]
struct Entry {
    /// Statuses that end an event.
    ends: Vec<u16>,
    /// Requests that it read and whose reply never came.
    lost_replies: usize,
}

#[derive(Default)]
struct Ledger {
    entries: Mutex<HashMap<String, Entry>>,
    /// Requests that were left without an answer until the service gave up on them.
    silences: AtomicUsize,
    /// True once a batch that was answered 503 need not be sent again, since all of it is held.
    is_over: AtomicBool,
}

/// Counts of what the runs exercised, since they prove nothing if they exercised nothing.
#[derive(Debug, Default)]
struct Exercised {
    faults: f64,
    joined: f64,
    openings: f64,
    sent_again: u64,
    lost_replies: usize,
    late_replies: usize,
    duplicates: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_invented_or_sent_twice_while_faults_come_and_go() {
    let end = std::env::var(RUN_FOR).ok().map(|time| Instant::now() + humantime::parse_duration(&time).unwrap());
    let mut first = 0;
    loop {
        let mut runs = JoinSet::new();
        (first..first + SEEDS).for_each(|seed| drop(runs.spawn(run(seed))));
        let mut all = Exercised::default();
        while let Some(run) = runs.join_next().await {
            let run = run.unwrap();
            all.faults += run.faults;
            all.joined += run.joined;
            all.openings += run.openings;
            all.sent_again += run.sent_again;
            all.lost_replies += run.lost_replies;
            all.late_replies += run.late_replies;
            all.duplicates += run.duplicates;
        }
        println!("seeds {first} to {}: {all:?}", first + SEEDS - 1);
        assert!(all.faults > 100.0 && all.joined > 10.0 && all.openings > 3.0 && all.sent_again > 10, "{all:?}");
        assert!(all.lost_replies > 0, "{all:?}");
        first += SEEDS;
        if end.is_none_or(|end| end <= Instant::now()) {
            return;
        }
    }
}

async fn run(seed: u64) -> Exercised {
    let mut rng = Rng::with_seed(seed);
    let (variance, ledger) = (Variance::start().await, Arc::new(Ledger::default()));
    let service = Service::start(&variance, |settings| {
        settings.server.webhook_deadline = Duration::from_millis(250);
        settings.server.batch_deadline = Duration::from_secs(1);
        settings.destination.attempt_timeout = Duration::from_secs(4);
        settings.outbox.pacing.backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(300));
        settings.outbox.pacing.suspects =
            SuspectPacing { gap: Duration::from_millis(10), round: Duration::from_millis(150) };
        settings.outbox.pacing.open_for = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        settings.outbox.pacing.recent = Duration::from_millis(200);
    })
    .await;
    variance.script(ledger.script(Weather::Fair, rng.fork()));
    let senders = Senders::start(&service.url(""), &ledger, &mut rng, (6, 25));
    storms(&variance, &ledger, &mut rng, 6).await;
    variance.script(ledger.script(Weather::Fair, rng.fork()));
    let Sent { ids: sent, sent_again, unanswered } = senders.done().await;
    service.emptied().await;

    // On a busy machine a reply that was written can be late, which is as good as lost.
    let timeouts = service.metric(r#"variance_connector_attempts_total{result="timeout"}"#).await as usize;
    let late_replies = timeouts.saturating_sub(ledger.silences.load(Ordering::SeqCst));
    let (lost_replies, duplicates) = ledger.check(&sent, &unanswered, &HashSet::new(), late_replies, seed);
    if timeout(Duration::from_secs(20), sums_agree(&service)).await.is_err() {
        panic!("seed {seed}: at rest the sums agree, but not in {}", service.get("/metrics").await.text);
    }
    // Every event that was taken in has arrived, whether or not its sender got a reply that says so.
    let ended = ledger.entries.lock().unwrap().len() as f64;
    let mut taken_in = 0.0;
    for outcome in ["delivered", "refused", "abandoned"] {
        taken_in +=
            service.metric(&format!(r#"variance_connector_events_total{{call="capture",outcome="{outcome}"}}"#)).await;
    }
    assert_eq!(taken_in, ended, "seed {seed}");
    let refused = service.metric(r#"variance_connector_events_total{call="capture",outcome="refused"}"#).await;
    assert_eq!(refused, ledger.refused() as f64, "seed {seed}: only what Variance has refused is");
    let mut faults = 0.0;
    for result in ["status", "timeout", "broken", "connect"] {
        faults += service.metric(&format!(r#"variance_connector_attempts_total{{result="{result}"}}"#)).await;
    }
    let joined = service.metric(r#"variance_connector_joined_events_total{same="true"}"#).await;
    let openings = service.metric("variance_connector_breaker_openings_total").await;
    Exercised { faults, joined, openings, sent_again, lost_replies, late_replies, duplicates }
}

#[tokio::test]
async fn of_what_was_sent_before_a_sender_hung_up_everything_is_accounted_for() {
    let variance = Variance::start().await;
    let service = Service::start(&variance, |_| {}).await;
    let event = format!(r#"{{"event":"$autocapture","properties":{{"of":"{:500}"}}}}"#, "");
    let body = format!("[{}]", vec![event; 5000].join(","));
    let head = format!("POST /batch HTTP/1.1\r\nHost: connector\r\nContent-Length: {}\r\n\r\n", body.len());
    for _ in 0..5 {
        let mut sender = TcpStream::connect(service.address).await.unwrap();
        sender.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        drop(sender);
        // Bodies of this size are prepared one after the other, so the first is finished by then.
        assert_eq!(service.post("/batch", body.clone()).await.status, 200);
        timeout(PATIENCE, sums_agree(&service)).await.expect("what was received has ended, or is held");
    }
}

/// Takes the program through storms into a pause that Variance asks for, with much held. Returns what was sent.
async fn until_it_holds_much(url: &str, variance: &Variance, ledger: &Arc<Ledger>, rng: &mut Rng) -> Sent {
    variance.script(ledger.script(Weather::Fair, rng.fork()));
    let senders = Senders::start(url, ledger, rng, (30, 4));
    storms(variance, ledger, rng, 4).await;
    variance.script(ledger.script(Weather::Away, rng.fork()));
    ledger.is_over.store(true, Ordering::SeqCst);
    let ids: Vec<_> = (0..HELD).map(|n| id(rng, 99, n)).collect();
    Sender::new(&client(), url, ledger, rng.fork()).batch(ids.clone()).await;
    let mut sent = senders.done().await;
    sent.ids.extend(ids);
    let paused = async {
        while metric(&Reply::of(client().get(format!("{url}/metrics"))).await.text, "next_attempt_seconds") < 200.0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, paused).await.expect("it pauses");
    sent
}

/// Returns the value of a metric without its prefix, or zero if it is not there.
fn metric(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("variance_connector_")?.strip_prefix(name));
    lines.map(|value| value.trim().parse::<f64>().unwrap()).sum()
}

/// The number of events that come during the pause.
const HELD: usize = 150;

/// The settings of the program in these runs. The grace is longer than anything takes, and an attempt may take longer than a
/// busy machine lets the program wait, because a reply that comes too late is as good as lost.
const SETTINGS: [(&str, &str); 4] = [
    ("CONNECTOR_WEBHOOK_DEADLINE", "250ms"),
    ("CONNECTOR_BATCH_DEADLINE", "1s"),
    ("CONNECTOR_ATTEMPT_TIMEOUT", "10s"),
    ("CONNECTOR_SHUTDOWN_GRACE", "60s"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_when_the_program_is_terminated_in_a_pause_arrives_once_whatever_the_log_is() {
    future::join_all(TROUBLES.into_iter().zip(0..).map(|(trouble, seed)| async move {
        let mut rng = Rng::with_seed(seed);
        let (variance, ledger) = (Variance::start().await, Arc::new(Ledger::default()));
        let mut program = Program::start(&variance, trouble, &SETTINGS).await;
        let url = format!("http://{}", program.address);
        let mut sent = until_it_holds_much(&url, &variance, &ledger, &mut rng).await;
        let health: Value = serde_json::from_str(&program.get("/healthz").await).unwrap();
        let held = health["held"]["events"].as_u64().unwrap();
        assert!(held >= HELD as u64, "{trouble:?}: {held}");
        let metrics = program.get("/metrics").await;
        let timeouts = metric(&metrics, r#"attempts_total{result="timeout"}"#) as usize;
        let late_replies = timeouts.saturating_sub(ledger.silences.load(Ordering::SeqCst));

        let last = Senders::last(&url, &ledger, &mut rng);
        program.terminate();
        variance.script(ledger.script(Weather::Fair, rng.fork()));
        assert_eq!(program.ended().await, Some(0), "{trouble:?}");
        let last = last.done().await;
        sent.ids.extend(last.ids);
        sent.unanswered.extend(last.unanswered);
        let (_, duplicates) = ledger.check(&sent.ids, &sent.unanswered, &HashSet::new(), late_replies, seed);
        println!("{trouble:?}: {held} were held, {duplicates} duplicates");
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_when_the_program_is_terminated_in_a_pause_arrives_once_or_is_named() {
    let mut rng = Rng::with_seed(0);
    let (variance, ledger) = (Variance::start().await, Arc::new(Ledger::default()));
    let mut program = program::Program::serve(&variance);
    for (name, value) in SETTINGS {
        program = program.env(name, value);
    }
    let (running, address, mut log) = program.env("CONNECTOR_SHUTDOWN_GRACE", "15s").ready_and_heard().await;
    let sent = until_it_holds_much(&format!("http://{address}"), &variance, &ledger, &mut rng).await;
    running.signal("-TERM");
    variance.script(ledger.script(Weather::Faulty(0.0), rng.fork()));
    let mut named = HashSet::new();
    while let Some(line) = log.next().await {
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["message"] == "events are lost"
            && line["reason"] == "the connector stopped before Variance accepted the event"
        {
            for id in line["uuids"].as_str().unwrap().split(' ') {
                assert!(named.insert(id.to_owned()), "{id} is named twice");
            }
        }
    }
    assert_eq!(running.ended().await.code, 0);
    assert!(named.iter().any(|id| id.contains("poison")), "Variance never takes those, but {named:?} are named");
    assert!((0..HELD).any(|n| ledger.has_ended(&format!("99-{n}-good"))), "none that came in the pause arrived");
    ledger.check(&sent.ids, &sent.unanswered, &named, 0, 0);
}

/// Makes the weather change a few times.
async fn storms(variance: &Variance, ledger: &Arc<Ledger>, rng: &mut Rng, count: usize) {
    for _ in 0..count {
        let faulty = [0.0, 0.2, 0.9, 1.0].map(Weather::Faulty);
        let weather = [&faulty[..], &[Weather::Limited, Weather::Crowded]].concat()[rng.usize(0..6)];
        variance.script(ledger.script(weather, rng.fork()));
        variance.accepting(if rng.u8(0..4) == 0 { Accepting::Resetting } else { Accepting::Normally });
        sleep(Duration::from_millis(rng.u64(100..400))).await;
    }
    variance.accepting(Accepting::Normally);
}

/// The stand-in's treatment of requests for a while.
#[derive(Clone, Copy, Debug)]
enum Weather {
    /// It takes every event that is not to be refused.
    Fair,
    /// This percentage of requests meets a fault, and so do all requests of poisonous events.
    Faulty(f64),
    /// It takes a few requests in a short time, and answers 429 beyond that.
    Limited,
    /// It has room for a few requests at once, each for a while, and answers 503 beyond that.
    Crowded,
    /// It takes nothing, and asks for a pause of five minutes.
    Away,
}

/// Returns an id. Of every twenty, about one is refused by the stand-in, and another makes it fail while the weather is
/// not fair.
fn id(rng: &mut Rng, worker: usize, n: usize) -> String {
    let kind = match rng.u8(0..20) {
        0 => "bad",
        1 => *rng.choice(&["poison-500", "poison-503", "poison-403"]).unwrap(),
        _ => "good",
    };
    format!("{worker}-{n}-{kind}")
}

/// Waits until the last request is accounted for, since a sender that hung up does not wait for that.
async fn sums_agree(service: &Service) {
    loop {
        let text = service.get("/metrics").await.text;
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(&format!("variance_connector_{name}")));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
        };
        let ends = sum("events_total{") + sum("joined_events_total{") + sum("held_events ");
        if sum("received_events_total ") == ends {
            return;
        }
    }
}

impl Ledger {
    /// Returns what the stand-in does in this weather.
    fn script(self: &Arc<Self>, weather: Weather, rng: Rng) -> impl Fn(&Received) -> Behaviour + Send + Sync + 'static {
        let (ledger, rng) = (Arc::clone(self), Mutex::new(rng));
        let (window, crowd) = (Mutex::new((Instant::now(), 0)), Mutex::new(Vec::new()));
        move |received| {
            let message = received.json();
            let id = message["messageId"].as_str().unwrap().to_owned();
            assert_eq!(message["properties"], json!({"of": id, "digits": 12345678901234567890_u64}), "altered");
            let mut rng = rng.lock().unwrap();
            let behaviour = match weather {
                Weather::Away => Behaviour::StatusWith(429, "Retry-After: 300\r\n".to_owned()),
                _ if !matches!(weather, Weather::Fair) && id.ends_with("poison-500") => Behaviour::Status(500),
                _ if !matches!(weather, Weather::Fair) && id.ends_with("poison-403") => Behaviour::Status(403),
                _ if !matches!(weather, Weather::Fair) && id.ends_with("poison-503") => {
                    Behaviour::StatusWith(503, "Retry-After: 1\r\n".to_owned())
                }
                Weather::Faulty(faulty) if rng.f64() < faulty => fault(&mut rng),
                Weather::Limited if is_beyond(&mut window.lock().unwrap()) => Behaviour::Status(429),
                Weather::Crowded if has_no_room(&mut crowd.lock().unwrap()) => Behaviour::Status(503),
                Weather::Crowded if !id.ends_with("bad") => Behaviour::After(STAY, Box::new(Behaviour::Status(200))),
                Weather::Fair | Weather::Faulty(_) | Weather::Limited | Weather::Crowded => take(&mut rng, &id),
            };
            let mut entries = ledger.entries.lock().unwrap();
            let entry = entries.entry(id).or_default();
            match &behaviour {
                Behaviour::Status(status @ (200 | 422)) => entry.ends.push(*status),
                Behaviour::Bytes(_) | Behaviour::After(..) | Behaviour::EndlessBody => entry.ends.push(200),
                Behaviour::Status(_) | Behaviour::StatusWith(..) => {}
                Behaviour::BytesThenSilence(_) => {
                    ledger.silences.fetch_add(1, Ordering::SeqCst);
                    entry.lost_replies += 1;
                }
                _ => entry.lost_replies += 1,
            }
            behaviour
        }
    }

    /// Checks that every event ended once, as it had to, unless it was named as lost, and apart from one duplicate at
    /// most for each reply that came too late: requests whose reply the stand-in lost do not count as ends. Returns how
    /// many replies were lost, and how many duplicates there were.
    fn check(
        &self,
        sent: &[String],
        unanswered: &HashSet<String>,
        named: &HashSet<String>,
        late_replies: usize,
        seed: u64,
    ) -> (usize, usize) {
        let entries = self.entries.lock().unwrap();
        assert!(entries.keys().all(|id| sent.contains(id)), "seed {seed}: invented");
        for id in sent {
            let entry = entries.get(id);
            if named.contains(id) {
                assert!(entry.is_none_or(|entry| entry.ends.is_empty()), "seed {seed}: {id} is named and has arrived");
                continue;
            }
            let Some(entry) = entry else {
                assert!(unanswered.contains(id), "seed {seed}: {id} is lost");
                continue;
            };
            let expected = if id.ends_with("bad") { 422 } else { 200 };
            assert!(entry.ends.iter().all(|end| *end == expected), "seed {seed}: {id} ended with {:?}", entry.ends);
            assert!(!entry.ends.is_empty(), "seed {seed}: {id} never ended");
        }
        // A refusal that is not believed does not end its event, which is sent again.
        let accepted = |entry: &Entry| entry.ends.iter().filter(|end| **end == 200).count();
        let duplicates: usize = entries.values().map(|entry| accepted(entry).saturating_sub(1)).sum();
        assert!(duplicates <= late_replies, "seed {seed}: {duplicates} duplicates, but {late_replies} late replies");
        (entries.values().map(|entry| entry.lost_replies).sum(), duplicates)
    }

    /// The number of events that the stand-in has refused.
    fn refused(&self) -> usize {
        let entries = self.entries.lock().unwrap();
        entries.values().filter(|entry| entry.ends.contains(&422)).count()
    }

    fn has_ended(&self, id: &str) -> bool {
        self.entries.lock().unwrap().get(id).is_some_and(|entry| !entry.ends.is_empty())
    }
}

/// True if another request is one too many for the limit.
fn is_beyond((start, count): &mut (Instant, usize)) -> bool {
    if start.elapsed() > Duration::from_millis(50) {
        (*start, *count) = (Instant::now(), 0);
    }
    *count += 1;
    *count > 20
}

/// For how long a request takes room.
const STAY: Duration = Duration::from_millis(20);

/// True if too many are there already; else another one is.
fn has_no_room(crowd: &mut Vec<Instant>) -> bool {
    crowd.retain(|came| came.elapsed() < STAY);
    let is_full = crowd.len() >= 8;
    crowd.extend((!is_full).then(Instant::now));
    is_full
}

fn fault(rng: &mut Rng) -> Behaviour {
    match rng.u8(0..40) {
        0 => Behaviour::BytesThenSilence(Vec::new()),
        1 => Behaviour::BytesThenSilence(b"HTTP/1.1 200".to_vec()),
        2 => Behaviour::StatusWith(503, "Retry-After: 1\r\n".to_owned()),
        3..6 => Behaviour::StatusWith(429, "Retry-After: inf\r\n".to_owned()),
        6..12 => Behaviour::Reset,
        12..16 => Behaviour::BytesThenClose(b"HTTP/1.1 20".to_vec()),
        _ => Behaviour::Status(*rng.choice(&[500, 502, 503, 504, 429, 408, 404, 401, 302]).unwrap()),
    }
}

fn take(rng: &mut Rng, id: &str) -> Behaviour {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    match rng.u8(0..20) {
        _ if id.ends_with("bad") => Behaviour::Status(422),
        0 => Behaviour::After(Duration::from_millis(20), Box::new(Behaviour::Status(200))),
        1 => Behaviour::Bytes([b"HTTP/1.1 103 Early Hints\r\n\r\n", OK].concat()),
        2 => Behaviour::EndlessBody,
        _ => Behaviour::Status(200),
    }
}

/// PostHog's sending side.
struct Sender {
    client: Client,
    webhook: String,
    batch: String,
    ledger: Arc<Ledger>,
    rng: Rng,
}

/// Several senders at work.
struct Senders {
    ids: Vec<String>,
    tasks: JoinSet<(u64, Vec<String>)>,
}

/// The work of several senders.
struct Sent {
    ids: Vec<String>,
    sent_again: u64,
    /// Events without any reply.
    unanswered: HashSet<String>,
}

impl Senders {
    /// Starts so many senders of webhooks, with so many events each, and two of batches.
    fn start(url: &str, ledger: &Arc<Ledger>, rng: &mut Rng, (webhooks, events): (usize, usize)) -> Self {
        let client = client();
        let mut senders = Self { ids: Vec::new(), tasks: JoinSet::new() };
        for worker in 0..webhooks + 2 {
            let events = if worker < webhooks { events } else { 150 };
            let ids: Vec<_> = (0..events).map(|n| id(rng, worker, n)).collect();
            senders.ids.extend(ids.clone());
            let sender = Sender::new(&client, url, ledger, rng.fork());
            if worker < webhooks {
                senders.tasks.spawn(sender.webhooks(ids));
            } else {
                senders.tasks.spawn(sender.batch(ids));
            }
        }
        senders
    }

    /// Starts senders for a program that is about to stop.
    fn last(url: &str, ledger: &Arc<Ledger>, rng: &mut Rng) -> Self {
        let client = client();
        let mut senders = Self { ids: Vec::new(), tasks: JoinSet::new() };
        for worker in 0..8 {
            let ids: Vec<_> = (0..20).map(|n| format!("last-{worker}-{n}-good")).collect();
            senders.ids.extend(ids.clone());
            senders.tasks.spawn(Sender::new(&client, url, ledger, rng.fork()).once(ids));
        }
        senders
    }

    async fn done(mut self) -> Sent {
        let mut sent = Sent { ids: self.ids, sent_again: 0, unanswered: HashSet::new() };
        while let Some(result) = self.tasks.join_next().await {
            let (sent_again, unanswered) = result.unwrap();
            sent.sent_again += sent_again;
            sent.unanswered.extend(unanswered);
        }
        sent
    }
}

impl Sender {
    fn new(client: &Client, url: &str, ledger: &Arc<Ledger>, rng: Rng) -> Self {
        let (webhook, batch) = (format!("{url}/webhook"), format!("{url}/batch"));
        Self { client: client.clone(), webhook, batch, ledger: Arc::clone(ledger), rng }
    }

    /// Sends each event once, for as long as anybody answers. Returns the events that were not acknowledged: a program
    /// that stops has not taken them in.
    async fn once(self, ids: Vec<String>) -> (u64, Vec<String>) {
        let mut not_acknowledged = Vec::new();
        for id in ids {
            match self.client.post(&self.webhook).body(event(&id)).send().await.map(|reply| reply.status().as_u16()) {
                Ok(200) => assert!(self.ledger.has_ended(&id), "{id} was acknowledged too early"),
                Ok(503) | Err(_) => not_acknowledged.push(id),
                Ok(other) => panic!("{other} for {id}"),
            }
        }
        (0, not_acknowledged)
    }

    /// Makes three attempts of 3 s each, with pauses of 1 to 2 s and 2 to 3 s between them. Returns how many it made
    /// beyond the first, and the events that it gave up on without any reply: on a busy machine they may never have
    /// been read.
    async fn webhooks(mut self, ids: Vec<String>) -> (u64, Vec<String>) {
        let (mut sent_again, mut unanswered) = (0, Vec::new());
        for id in ids {
            let mut is_answered = false;
            for attempt in 1..=3 {
                let request = self.client.post(&self.webhook).timeout(Duration::from_millis(300)).body(event(&id));
                let status = request.send().await.map_or(0, |reply| reply.status().as_u16());
                is_answered |= status != 0;
                match status {
                    200 | 422 => assert!(self.ledger.has_ended(&id), "{id} was acknowledged too early"),
                    0 | 408 | 429 | 500 | 502 | 503 | 504 => {
                        sent_again += u64::from(attempt < 3);
                        sleep(Duration::from_millis(attempt * 100 + self.rng.u64(0..100))).await;
                        continue;
                    }
                    other => panic!("{other} for {id}"),
                }
                break;
            }
            if !is_answered {
                unanswered.push(id);
            }
        }
        (sent_again, unanswered)
    }

    /// Sends the whole batch again and again until it is answered, or held when all is over. Returns how many times it was sent again.
    async fn batch(mut self, ids: Vec<String>) -> (u64, Vec<String>) {
        let events: Vec<_> = ids.iter().map(event).collect();
        let body = format!(r#"{{"batch":[{}]}}"#, events.join(","));
        for sent_again in 0.. {
            let is_last = self.ledger.is_over.load(Ordering::SeqCst);
            let status = self.client.post(&self.batch).body(body.clone()).send().await.unwrap().status().as_u16();
            match status {
                200 => {
                    assert!(ids.iter().all(|id| self.ledger.has_ended(id)), "a batch was acknowledged too early");
                    return (sent_again, Vec::new());
                }
                503 if is_last => return (sent_again, Vec::new()),
                429 | 500..=599 => sleep(Duration::from_millis(self.rng.u64(50..150))).await,
                other => panic!("{other} for a batch"),
            }
        }
        unreachable!("it is sent again for ever")
    }
}

fn event(id: &String) -> String {
    let properties = json!({"of": id, "digits": 12345678901234567890_u64});
    json!({"event": "e", "uuid": id, "distinct_id": "d", "properties": properties}).to_string()
}
