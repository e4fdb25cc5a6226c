//! Laws of the limit, and a simulation of destinations of every kind in virtual time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use fastrand::Rng;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// How a destination answers at a time in seconds since its first request.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// After this long.
    Delay(fn(f64) -> f64),
    /// After the first, and the second more on a new connection.
    Connect(f64, f64),
    /// After a time that is log-normal with sigma 1 and this median.
    LogNormal(f64),
    /// After this long each, so many at once; the others wait their turn.
    Slots(fn(f64) -> usize, f64),
    /// After this long each, and with 503 beyond so many.
    Capacity(usize, f64),
    /// With 429 beyond so many in each second of its clock, after which it may ask for a pause.
    Window(f64, Option<Duration>),
    /// With 429 beyond so many in any second.
    Sliding(usize, Option<Duration>),
    /// With 429 when a bucket of so many is empty, which fills with so many a second.
    Bucket(f64, f64, Option<Duration>),
    /// After this long, but this part at once with 503, however many there are.
    Broken(f64, f64),
}

struct Destination {
    kind: Kind,
    rng: Rng,
    /// When each slot is free.
    slots: Vec<f64>,
    /// When those in flight end, or those of the last second were taken.
    times: VecDeque<f64>,
    /// Tokens, or how many were taken in a window, or how many connections are open, and since when.
    count: f64,
    since: f64,
    /// How much of its clock's second is over at the start.
    phase: f64,
}

/// How soon it answers what it does not take.
const AT_ONCE: f64 = 0.000_5;

impl Destination {
    fn new(kind: Kind, seed: u64) -> Self {
        let count = if let Kind::Bucket(size, ..) = kind { size } else { 0.0 };
        let mut rng = Rng::with_seed(seed);
        let phase = rng.f64();
        Self { kind, rng, slots: Vec::new(), times: VecDeque::new(), count, since: 0.0, phase }
    }

    /// What it answers to a request at `now`, the last of so many in flight, and after how long.
    fn post(&mut self, now: f64, in_flight: usize) -> (Signal, f64) {
        let taken = |is_taken, otherwise, time| if is_taken { (Signal::Answered, time) } else { (otherwise, AT_ONCE) };
        match self.kind {
            Kind::Delay(time) => (Signal::Answered, time(now)),
            Kind::Connect(time, connect) => {
                let connects = in_flight as f64 > self.count;
                self.count = self.count.max(in_flight as f64);
                (Signal::Answered, if connects { time + connect } else { time })
            }
            Kind::LogNormal(median) => (Signal::Answered, median * normal(&mut self.rng).exp()),
            Kind::Broken(time, part) => taken(self.rng.f64() >= part, Signal::Overloaded, time),
            Kind::Slots(number, time) => {
                // The earliest are at the end.
                let number = number(now);
                self.slots.drain(..self.slots.len().saturating_sub(number));
                while self.slots.len() < number {
                    self.slots.push(now);
                }
                let free = self.slots.pop().expect("there is a slot").max(now) + time * (0.95 + 0.1 * self.rng.f64());
                self.slots.insert(self.slots.partition_point(|other| *other > free), free);
                (Signal::Answered, free - now)
            }
            Kind::Capacity(number, time) => {
                self.times.retain(|end| *end > now);
                let is_taken = self.times.len() < number;
                if is_taken {
                    self.times.push_back(now + time);
                }
                taken(is_taken, Signal::Overloaded, time)
            }
            Kind::Window(number, pause) => {
                let window = (now + self.phase).floor();
                if window != self.since {
                    (self.count, self.since) = (0.0, window);
                }
                self.count += 1.0;
                taken(self.count <= number, Signal::TooMany(pause), AT_ONCE)
            }
            Kind::Sliding(number, pause) => {
                self.times.retain(|taken| now - *taken < 1.0);
                let is_taken = self.times.len() < number;
                if is_taken {
                    self.times.push_back(now);
                }
                taken(is_taken, Signal::TooMany(pause), AT_ONCE)
            }
            Kind::Bucket(size, rate, pause) => {
                self.count = (self.count + (now - self.since) * rate).min(size);
                self.since = now;
                let is_taken = self.count >= 1.0;
                self.count -= f64::from(u8::from(is_taken));
                taken(is_taken, Signal::TooMany(pause), AT_ONCE)
            }
        }
    }
}

/// A number from the normal distribution (Box and Muller).
fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A reply: when it came, after how long, and what it said.
type Log = Vec<(f64, f64, Signal)>;

/// Posts as much as the limit allows for so many seconds. A post and a reply take 10 µs
/// of this machine's time, and its timer is up to a millisecond late.
fn simulate(kind: Kind, seconds: f64, seed: u64) -> Log {
    const WORK: f64 = 0.000_010;
    let origin = Instant::now();
    let at = |time: f64| origin + Duration::from_secs_f64(time);
    let mut destination = Destination::new(kind, seed);
    let mut limit = Limit::new(256, origin);
    let (mut now, mut pause_over) = (0.0_f64, 0.0_f64);
    let mut in_flight = BinaryHeap::new();
    let mut attempts: Vec<(Attempt, f64, Signal)> = Vec::new();
    let mut log = Vec::new();
    while now < seconds {
        now += WORK;
        let is_paused = now < pause_over;
        if !is_paused && limit.may_start(at(now)) {
            let (reply, time) = destination.post(now, limit.in_flight() + 1);
            in_flight.push(Reverse((at(now + time), attempts.len())));
            attempts.push((limit.start(at(now)), now, reply));
            continue;
        }
        let next_start = limit.next().map(|next| (next - origin).as_secs_f64().max(pause_over));
        let next_start = next_start.map_or(f64::INFINITY, |next| (next * 1000.0).ceil() / 1000.0);
        let next_reply = in_flight.peek().map(|Reverse((end, _))| (*end - origin).as_secs_f64());
        if next_reply.is_none_or(|reply| reply > next_start) {
            now = now.max(next_start);
            continue;
        }
        now = now.max(next_reply.expect("there is one"));
        let Reverse((_, number)) = in_flight.pop().expect("there is one");
        let (attempt, began, reply) = attempts[number];
        limit.free();
        limit.note(attempt, reply, at(now));
        log.push((now, now - began, reply));
        if let Signal::TooMany(Some(pause)) = reply {
            pause_over = now + pause.as_secs_f64();
        }
    }
    log
}

/// A row of the table: what is asked of a stretch of time.
struct Row {
    name: &'static str,
    from: f64,
    to: f64,
    /// A second, at least.
    answered: f64,
    /// Per cent, at most.
    rejected: f64,
    /// In ms, at most.
    median: f64,
}

/// Simulates a destination, prints a row for each of these, and returns those that were missed.
fn missed(kind: Kind, rows: &[Row]) -> Vec<&'static str> {
    let logs = [0, 1].map(|seed| simulate(kind, rows.last().expect("there is a row").to, seed));
    let mut missed = Vec::new();
    for row in rows {
        let (mut answered, mut rejected, mut median, mut longest) = (f64::INFINITY, 0.0_f64, 0.0_f64, 0.0_f64);
        for log in &logs {
            let log = log.iter().filter(|(at, ..)| (row.from..row.to).contains(at));
            let (taken, others): (Vec<_>, Vec<_>) = log.partition(|(.., reply)| *reply == Signal::Answered);
            let mut times: Vec<_> = taken.iter().map(|(_, time, _)| time * 1000.0).collect();
            times.sort_by(f64::total_cmp);
            answered = answered.min(times.len() as f64 / (row.to - row.from));
            rejected = rejected.max(100.0 * others.len() as f64 / (others.len() + times.len()) as f64);
            median = median.max(times[times.len() / 2]);
            longest = longest.max(times[times.len() - 1]);
        }
        println!("//! | {} | {answered:.0}/s | {rejected:.1} % | {median:.0} ms | {longest:.0} ms |", row.name);
        if answered < row.answered || rejected > row.rejected || median > row.median {
            missed.push(row.name);
        }
    }
    missed
}

/// The table of the module's documentation.
#[test]
fn destinations_of_every_kind_get_as_much_as_they_take() {
    let pause = Some(2 * SECOND);
    let slows = |now: f64| if (10.0..15.0).contains(&now) { 0.2 } else { 0.05 };
    let falls = |now: f64| if (5.0..12.0).contains(&now) { 20 } else { 200 };
    let flaps = |now: f64| if now % 10.0 < 5.0 { 200 } else { 20 };
    let row = |name, from, to, answered, rejected, median| Row { name, from, to, answered, rejected, median };
    let mixed = |now: f64| if ((now * 100_000.0) as u64).is_multiple_of(10) { 0.5 } else { 0.001 };
    let table: [(Kind, &[Row]); 19] = [
        (Kind::Delay(|_| 0.2), &[row("200 ms", 5.0, 20.0, 1_200.0, 0.0, 201.0)]),
        (Kind::Connect(0.2, 0.6), &[row("200 ms, 600 ms more to connect", 5.0, 20.0, 1_200.0, 0.0, 201.0)]),
        (Kind::Delay(|_| 0.05), &[row("50 ms", 5.0, 10.0, 4_800.0, 0.0, 51.0)]),
        (Kind::Delay(|_| 0.0001), &[row("at once", 0.5, 1.0, 49_000.0, 0.0, 6.0)]),
        (Kind::LogNormal(0.05), &[row("log-normal, median 50 ms, sigma 1", 5.0, 20.0, 2_485.0, 0.0, 55.0)]),
        (Kind::Delay(slows), &[row("50 ms, but 200 ms for five seconds: after them", 15.0, 20.0, 4_000.0, 0.0, 51.0)]),
        (Kind::Delay(mixed), &[row("1 ms, but every tenth 500 ms", 5.0, 10.0, 1_200.0, 0.0, 2.0)]),
        (Kind::Window(500.0, None), &[row("500 in each second, 429", 5.0, 40.0, 450.0, 1.0, 1.0)]),
        (Kind::Sliding(500, None), &[row("500 in any second, 429", 5.0, 40.0, 450.0, 1.0, 1.0)]),
        (Kind::Bucket(5.0, 500.0, None), &[row("500/s, five at once, 429", 15.0, 40.0, 400.0, 1.0, 1.0)]),
        (Kind::Window(500.0, pause), &[row("500 in each second, 429, `Retry-After: 2`", 15.0, 35.0, 350.0, 1.0, 1.0)]),
        (Kind::Sliding(500, pause), &[row("500 in any second, 429, `Retry-After: 2`", 15.0, 35.0, 350.0, 1.0, 1.0)]),
        (
            Kind::Bucket(50.0, 500.0, pause),
            &[row("500/s, 50 at once, 429, `Retry-After: 2`", 15.0, 35.0, 300.0, 1.0, 1.0)],
        ),
        (Kind::Slots(|_| 16, 0.02), &[row("16 slots of 20 ms", 5.0, 20.0, 770.0, 0.0, 35.0)]),
        (Kind::Slots(|_| 2, 0.02), &[row("2 slots of 20 ms", 20.0, 40.0, 80.0, 0.0, 60.0)]),
        (Kind::Capacity(16, 0.02), &[row("16 slots of 20 ms, 503", 5.0, 30.0, 700.0, 5.0, 21.0)]),
        (
            Kind::Slots(falls, 0.02),
            &[
                row("200 slots of 20 ms", 3.0, 5.0, 9_500.0, 0.0, 30.0),
                row("20 of them: from the sixth second on", 11.0, 12.0, 950.0, 0.0, 45.0),
                row("200 again: from the tenth second on", 22.0, 25.0, 5_000.0, 0.0, 30.0),
            ],
        ),
        (Kind::Slots(flaps, 0.02), &[row("200 and 20 slots of 20 ms, 5 s each", 5.0, 25.0, 1_000.0, 0.0, 45.0)]),
        (Kind::Broken(0.05, 0.25), &[row("50 ms, and every fourth at once 503", 5.0, 15.0, 3_500.0, 27.0, 51.0)]),
    ];
    println!("//! | destination | answered | rejected | median reply | longest |\n//! |---|---|---|---|---|");
    let missed: Vec<_> = table.into_iter().flat_map(|(kind, rows)| missed(kind, rows)).collect();
    assert_eq!(missed, [""; 0]);
}

#[test]
fn a_limit_that_grew_in_a_slow_moment_falls_back_once_replies_come_at_once() {
    let mut now = Instant::now();
    let mut limit = Limit::new(256, now);
    let mut rounds = |reply_time: Duration| {
        for _ in 0..100 {
            let mut attempts = Vec::new();
            while limit.may_start(now) {
                attempts.push(limit.start(now));
            }
            now += reply_time;
            for attempt in attempts {
                limit.note(attempt, Signal::Answered, now);
                limit.free();
            }
        }
        limit.value()
    };
    assert_eq!(rounds(Duration::from_millis(50)), 256);
    assert_eq!(rounds(Duration::from_millis(1)), 32);
    assert_eq!(rounds(Duration::from_millis(50)), 256);
    // Enough for 8,000 a second.
    for (millis, enough) in [(4, 31..=32), (5, 38..=40), (9, 68..=72), (11, 256..=256), (9, 68..=72)] {
        let limit = rounds(Duration::from_millis(millis));
        assert!(enough.contains(&limit), "{millis} ms: {limit}");
    }
}

/// PostHog's own backfill sends a thousand webhooks at once, each of which must be over in 2.5 s.
#[test]
fn a_burst_of_a_thousand_is_over_in_time() {
    let log = simulate(Kind::Delay(|_| 0.3), 2.5, 0);
    assert!(log.len() >= 1000, "{}", log.len());
}

fn reply() -> impl Strategy<Value = Signal> {
    prop_oneof![
        8 => Just(Signal::Answered),
        1 => (0..9000_u64).prop_map(|pause| Signal::TooMany((pause > 5000).then(|| Duration::from_millis(pause)))),
        2 => Just(Signal::Overloaded),
        1 => Just(Signal::Other),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is replied, and whenever.
    #[test]
    fn the_limit_stays_between_one_and_the_most_and_nobody_waits_for_ever(
        most in 1..300_usize,
        steps in prop::collection::vec((0..300_usize, reply(), 0..2000_u64), 0..2000),
    ) {
        let mut now = Instant::now();
        let mut limit = Limit::new(most, now);
        let mut in_flight = Vec::new();
        for (which, reply, wait) in steps {
            while limit.may_start(now) {
                in_flight.push(limit.start(now));
            }
            prop_assert!((1..=most).contains(&limit.value()) && in_flight.len() <= most);
            prop_assert_eq!(in_flight.len(), limit.in_flight());
            match limit.next() {
                // Nothing but a reply lets another begin.
                None => {
                    let attempt = in_flight.swap_remove(which % in_flight.len());
                    limit.free();
                    limit.note(attempt, reply, now);
                }
                Some(next) => {
                    prop_assert!(next > now && next - now <= 2 * SECOND, "{:?}", next - now);
                    now = next;
                }
            }
            now += Duration::from_millis(wait / 10);
        }
    }
}

#[test]
fn complaints_of_attempts_that_began_before_a_429_do_not_cut_again() {
    let start = Instant::now();
    let mut limit = Limit::new(64, start);
    let attempts: Vec<_> = (0..64).map(|_| limit.start(start)).collect();
    attempts[..32].iter().for_each(|attempt| limit.note(*attempt, Signal::Answered, start + SECOND));
    limit.note(attempts[32], Signal::TooMany(None), start + SECOND);
    let rate = limit.rate.value();
    assert!(rate.is_finite());
    attempts[33..].iter().for_each(|attempt| limit.note(*attempt, Signal::TooMany(None), start + SECOND));
    assert_eq!(limit.rate.value(), rate);
}

#[test]
fn a_429_amid_other_faults_is_made_up_for_in_twenty_seconds() {
    let start = Instant::now();
    let (mut limit, mut now) = (Limit::new(64, start), start);
    let mut post = |reply| {
        now = now.max(limit.next().expect("none is in flight"));
        let attempt = limit.start(now);
        now += SECOND / 10;
        limit.free();
        limit.note(attempt, reply, now);
        (limit.rate.value(), now)
    };
    post(Signal::Answered);
    for _ in 0..8 {
        post(Signal::Other);
    }
    let (rate, cut) = post(Signal::TooMany(None));
    assert!(rate < 2.0, "so little was answered in a second: {rate}");
    loop {
        let (rate, now) = post(Signal::Answered);
        assert!(now - cut < 20 * SECOND, "{rate} a second");
        if rate > 300.0 {
            return;
        }
    }
}

#[test]
fn without_an_event_that_waits_the_limit_does_not_grow() {
    let mut now = Instant::now();
    let mut limit = Limit::new(256, now);
    for _ in 0..1000 {
        let attempt = limit.start(now);
        now += SECOND / 10;
        limit.free();
        limit.note(attempt, Signal::Answered, now);
    }
    assert_eq!(limit.value(), START);
}

#[test]
fn what_connecting_took_is_not_part_of_a_reply_time() {
    let mut now = Instant::now();
    let mut limit = Limit::new(64, now);
    for round in 0..2 {
        let attempts: Vec<_> = (0..64).map(|_| limit.start(now)).collect();
        now += SECOND;
        for attempt in attempts {
            limit.free();
            limit.note(attempt, Signal::Answered, now);
        }
        assert_eq!(limit.seen.answers, 64 * round);
    }
}

#[test]
fn what_connecting_took_does_not_raise_the_limit() {
    for (millis, after) in [(23, 64), (40, 128)] {
        let now = Instant::now();
        let mut limit = Limit::new(256, now);
        let mut attempts = Vec::new();
        while limit.may_start(now) {
            attempts.push(limit.start(now));
        }
        for attempt in attempts {
            limit.free();
            limit.note(attempt, Signal::Answered, now + Duration::from_millis(millis));
        }
        assert_eq!(limit.value(), after, "{millis} ms");
    }
}
