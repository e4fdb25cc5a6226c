//! The queue between the code that logs and the thread that writes, which alone may have to wait for the log's reader.
//!
//! A line that finds the queue full, or that cannot be written, is dropped and counted. Once a line is written again,
//! the log says how many were dropped. `tracing-appender` has such a queue too, but it is bounded by lines, not by
//! bytes, does not count lines that cannot be written, and brings a calendar for files that change daily.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard},
    time::Duration,
};

use crate::metrics::Metrics;

/// The most bytes of waiting lines: room for the uuids of some 200,000 events, all of which one stop may have to name.
const LIMIT: usize = 8 << 20;

/// Lines that wait to be written.
#[derive(Debug)]
pub(super) struct Queue {
    lines: Mutex<Lines>,
    /// Notified when there is a line.
    arrived: Condvar,
    /// Notified when the thread has nothing to do.
    idle: Condvar,
    limit: usize,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Lines {
    waiting: VecDeque<Vec<u8>>,
    /// The bytes of the waiting lines, and of the one that is being written.
    bytes: usize,
    /// The number of lines that were dropped since the log last said so.
    dropped: u64,
    /// True while the thread waits for a line.
    is_idle: bool,
}

impl Queue {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { lines: Mutex::default(), arrived: Condvar::new(), idle: Condvar::new(), limit: LIMIT, metrics }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("no panic while it is held")
    }

    fn push(&self, line: &[u8]) {
        let mut lines = self.lines();
        if lines.bytes + line.len() > self.limit {
            self.drop_line(&mut lines);
            return;
        }
        lines.bytes += line.len();
        lines.is_idle = false;
        lines.waiting.push_back(line.to_vec());
        self.arrived.notify_one();
    }

    fn drop_line(&self, lines: &mut Lines) {
        lines.dropped += 1;
        self.metrics.log_line_dropped();
    }

    /// Writes each line as it comes, forever.
    pub(super) fn write_to(&self, mut output: impl Write) -> ! {
        let mut was_written = false;
        let mut is_torn = false;
        loop {
            let line = self.next(was_written);
            was_written = match write_line(&mut output, &line, &mut is_torn) {
                Ok(()) => true,
                Err(_) => {
                    self.drop_line(&mut self.lines());
                    false
                }
            };
            self.lines().bytes -= line.len();
        }
    }

    /// Returns the next line. Before it waits for one, it logs how many were dropped, if the last line was written.
    fn next(&self, was_written: bool) -> Vec<u8> {
        let mut lines = self.lines();
        loop {
            if let Some(line) = lines.waiting.pop_front() {
                return line;
            }
            if was_written && lines.dropped > 0 {
                let dropped = std::mem::take(&mut lines.dropped);
                drop(lines);
                // This warning comes back here as a line like any other.
                tracing::warn!(lines = dropped, "log lines were dropped: the log could not be written");
                lines = self.lines();
                continue;
            }
            lines.is_idle = true;
            self.idle.notify_all();
            lines = self.arrived.wait(lines).expect("no panic while it is held");
        }
    }

    /// Waits until every line has been written or dropped, but not longer than `at_most`.
    pub(super) fn flush(&self, at_most: Duration) {
        let lines = self.lines();
        drop(self.idle.wait_timeout_while(lines, at_most, |lines| !lines.is_idle));
    }
}

/// Writes a line. `is_torn` says whether the last one ended in the middle, so that this one must not continue it.
fn write_line(output: &mut impl Write, line: &[u8], is_torn: &mut bool) -> io::Result<()> {
    if *is_torn {
        output.write_all(b"\n")?;
        *is_torn = false;
    }
    let mut rest = line;
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                rest = &rest[written..];
                *is_torn = !rest.is_empty();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Write for &Queue {
    /// Takes one whole line. It never fails, since a log that cannot be written is not the caller's fault.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
    };

    use tracing::dispatcher;

    use super::*;

    /// An output that follows instructions: for each call the number of bytes to write, or `None` for an error.
    struct Output {
        told: mpsc::Receiver<Option<usize>>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let told = self.told.recv().unwrap_or(Some(usize::MAX)).ok_or(io::ErrorKind::StorageFull)?;
            let length = told.min(bytes.len());
            // The test may have seen enough.
            drop(self.written.send(bytes[..length].to_vec()));
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Starts a queue whose lines a thread writes to an [`Output`]. Returns the senders of its instructions and the
    /// receiver of what it writes.
    fn start(limit: usize) -> (Arc<Queue>, mpsc::Sender<Option<usize>>, mpsc::Receiver<Vec<u8>>) {
        let queue = Arc::new(Queue { limit, ..Queue::new(Metrics::new()) });
        let ((tell, told), (written, receiver)) = (mpsc::channel(), mpsc::channel());
        let (output, lines) = (Output { told, written }, Arc::clone(&queue));
        let log = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(Arc::clone(&queue)).into();
        thread::spawn(move || dispatcher::with_default(&log, || lines.write_to(output)));
        (queue, tell, receiver)
    }

    fn received(written: &mpsc::Receiver<Vec<u8>>) -> String {
        String::from_utf8(written.recv().unwrap()).unwrap()
    }

    const ALL: Option<usize> = Some(usize::MAX);

    #[test]
    fn lines_that_find_no_room_are_dropped_and_told_of_once_it_moves_again() {
        let (queue, tell, written) = start(200);
        queue.push(&[b'x'; 200]);
        for _ in 0..7 {
            queue.push(b"y");
        }
        tell.send(ALL).unwrap();
        tell.send(ALL).unwrap();
        assert_eq!(received(&written), "x".repeat(200));
        let expected = " WARN variance_connector::telemetry::queue: log lines were dropped: the log could not be written \
                        lines=7\n";
        assert_eq!(received(&written), expected);
        queue.flush(Duration::MAX);
        assert_eq!(queue.lines().dropped, 0);
    }

    #[test]
    fn a_line_that_fails_is_dropped_and_one_that_was_cut_short_is_ended() {
        let (queue, tell, written) = start(LIMIT);
        for line in [&b"one\n"[..], b"two\n", b"three\n", b"four\n"] {
            queue.push(line);
        }
        // The first fails, the second breaks off, the third is written in two.
        for told in [None, Some(1), None, ALL, Some(2), ALL] {
            tell.send(told).unwrap();
        }
        drop(tell);
        let all: Vec<_> = (0..6).map(|_| received(&written)).collect();
        assert_eq!(all[..5], ["t", "\n", "th", "ree\n", "four\n"]);
        assert!(all[5].ends_with(" lines=2\n"), "{all:?}");
    }

    #[test]
    fn a_flush_waits_for_all_lines_and_no_longer_than_it_may() {
        let (queue, tell, written) = start(LIMIT);
        queue.push(b"one\n");
        queue.flush(Duration::from_millis(1));
        assert!(written.try_recv().is_err(), "nothing could be written");
        tell.send(ALL).unwrap();
        queue.flush(Duration::MAX);
        assert_eq!(written.try_recv().unwrap(), b"one\n");
    }
}
