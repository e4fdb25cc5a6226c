//! A receiver with limits of its own: a process that reports what it took when it is asked with GET.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use crate::shared::{accept, request_end};

/// The way in which a receiver answers.
enum Kind {
    /// Answers after a fixed time.
    Delay(Duration),
    /// Answers after a log-normal time with sigma 1 and this median.
    LogNormal(Duration),
    /// Answers at once, and with 429 beyond this many in any second, with or without `Retry-After`.
    Rate(usize, Option<u64>),
    /// Answers after a fixed time, this many at once, while the others wait their turn. The second number applies from
    /// the tenth second to the twentieth.
    Slots(usize, usize, Duration),
}

impl Kind {
    fn parse(words: &[String]) -> anyhow::Result<Self> {
        let number = |at: usize| -> anyhow::Result<u64> { Ok(words.get(at).context("a number")?.parse()?) };
        let time = |at| number(at).map(Duration::from_millis);
        Ok(match words.first().map(String::as_str) {
            Some("delay") => Self::Delay(time(1)?),
            Some("log-normal") => Self::LogNormal(time(1)?),
            Some("rate") => Self::Rate(number(1)? as usize, number(2).ok()),
            Some("slots") => Self::Slots(number(1)? as usize, number(2)? as usize, time(3)?),
            _ => bail!("no such receiver: {words:?}"),
        })
    }
}

struct Receiver {
    kind: Kind,
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    first: Option<Instant>,
    /// The times at which messages were taken in the last second.
    taken: VecDeque<Instant>,
    /// The time at which each slot will be free.
    slots: Vec<Instant>,
    /// The messages that were taken, as hashes.
    messages: HashSet<u64>,
    duplicates: usize,
    rejected: usize,
    /// Reply times in ms since the last request for them.
    times: Vec<f64>,
}

/// The counts of a receiver since it was last asked.
pub struct Seen {
    pub taken: usize,
    pub rejected: usize,
    /// Duplicates since the start.
    pub duplicates: usize,
    pub median_ms: f64,
    pub longest_ms: f64,
}

impl Seen {
    /// Reads the text that [`Receiver::tell`] writes.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut words = text.split(' ');
        let mut word = || words.next().context("five numbers");
        Ok(Self {
            taken: word()?.parse()?,
            rejected: word()?.parse()?,
            duplicates: word()?.parse()?,
            median_ms: word()?.parse()?,
            longest_ms: word()?.parse()?,
        })
    }
}

pub fn run(kind: &[String]) -> anyhow::Result<()> {
    let receiver = Arc::new(Receiver { kind: Kind::parse(kind)?, hasher: RandomState::new(), state: Mutex::default() });
    accept(|stream| {
        let receiver = Arc::clone(&receiver);
        async move { receiver.serve(stream).await }
    })
}

impl Receiver {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut buffer = Vec::with_capacity(64 << 10);
        loop {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            while let Some((end, body)) = request_end(&buffer) {
                let reply = match buffer.starts_with(b"GET ") {
                    true => {
                        let text = self.tell();
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
                    }
                    false => {
                        let (until, reply) = self.take(&buffer[body..end]);
                        sleep_until(until).await;
                        reply
                    }
                };
                stream.write_all(reply.as_bytes()).await?;
                buffer.drain(..end);
            }
        }
    }

    /// Returns when a message is to be answered, and the reply.
    fn take(&self, message: &[u8]) -> (Instant, String) {
        let now = Instant::now();
        let state = &mut *self.state.lock().expect("no panic while it is held");
        let first = *state.first.get_or_insert(now);
        let until = match self.kind {
            Kind::Delay(time) => now + time,
            Kind::LogNormal(median) => now + median.mul_f64(normal().exp()),
            Kind::Slots(usual, between, time) => {
                let number = if (10..20).contains(&(now - first).as_secs()) { between } else { usual };
                state.slots.resize(number, now);
                let slot = state.slots.iter_mut().min().expect("there is a slot");
                *slot = (*slot).max(now) + time;
                *slot
            }
            Kind::Rate(most, retry_after) => {
                while state.taken.front().is_some_and(|taken| now - *taken >= Duration::from_secs(1)) {
                    state.taken.pop_front();
                }
                if state.taken.len() >= most {
                    state.rejected += 1;
                    let pause = retry_after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
                    return (now, format!("HTTP/1.1 429 Too Many Requests\r\n{pause}Content-Length: 0\r\n\r\n"));
                }
                state.taken.push_back(now);
                now
            }
        };
        if !state.messages.insert(self.hasher.hash_one(id(message))) {
            state.duplicates += 1;
        }
        state.times.push((until - now).as_secs_f64() * 1000.0);
        (until, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned())
    }

    /// Writes the counts since it was last asked, for [`Seen::parse`].
    fn tell(&self) -> String {
        let state = &mut *self.state.lock().expect("no panic while it is held");
        let mut times = std::mem::take(&mut state.times);
        times.sort_by(f64::total_cmp);
        let rejected = std::mem::take(&mut state.rejected);
        let [median, longest] =
            [times.len() / 2, times.len().saturating_sub(1)].map(|at| times.get(at).unwrap_or(&0.0));
        format!("{} {rejected} {} {median:.1} {longest:.1}", times.len(), state.duplicates)
    }
}

/// Returns the message's id.
fn id(message: &[u8]) -> &[u8] {
    const KEY: &[u8] = b"\"messageId\":\"";
    let at = message.windows(KEY.len()).position(|window| window == KEY).expect("every message has an id") + KEY.len();
    &message[at..at + 36]
}

/// Draws a number from the normal distribution (Box and Muller).
fn normal() -> f64 {
    (-2.0 * (1.0 - fastrand::f64()).ln()).sqrt() * (std::f64::consts::TAU * fastrand::f64()).cos()
}
