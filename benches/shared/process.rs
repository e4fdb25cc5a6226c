//! The processes that are measured, with the kernel's figures about them.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::TOKEN;

/// A child process, which ends when it is dropped.
pub struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    /// Starts the receiver of this kind, on a port of its choice.
    pub fn receiver(kind: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("receiver").args(kind).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let address = line.trim().parse().context("the receiver prints its address")?;
        Ok(Self { child, address })
    }

    /// Starts the bare loop, which posts `events` and ends.
    pub fn yardstick(receiver: SocketAddr, events: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let child = command.args(["yardstick", &receiver.to_string(), &events.to_string()]).spawn()?;
        Ok(Self { child, address: receiver })
    }

    /// The real binary.
    pub const CONNECTOR: &str = env!("CARGO_BIN_EXE_variance-connector");

    /// Starts a build of the binary in front of the receiver, with further variables and a place for its log, and waits
    /// until it is ready.
    pub fn start(
        binary: &Path,
        receiver: SocketAddr,
        variables: &[(&str, &str)],
        log: impl Into<Stdio>,
    ) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(binary)
            .env_clear()
            .env("VARIANCE_WEBHOOK_URL", format!("http://{receiver}/hooks/posthog"))
            .env("VARIANCE_AUTHORIZATION", "Bearer credential")
            .env("CONNECTOR_LISTEN", address.to_string())
            .env("CONNECTOR_TOKEN", TOKEN)
            .env("CONNECTOR_LOG_LEVEL", "warn")
            .envs(variables.iter().copied())
            .stderr(log)
            .spawn()
            .context("the connector must start")?;
        let mut process = Self { child, address };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(process.child.try_wait()?.is_none(), "the connector has ended");
            ensure!(start.elapsed() < Duration::from_secs(10), "the connector is not ready");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(process)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CPU time so far of the threads that still run, to the nanosecond.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut cpu = Duration::ZERO;
        for thread in self.threads()? {
            let times = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            cpu += Duration::from_nanos(times.split(' ').next().context("a schedstat line")?.parse()?);
        }
        Ok(cpu)
    }

    /// Waits for the process to end, and returns the CPU time of all its threads, in steps of 10 ms.
    pub fn finish(mut self) -> anyhow::Result<Duration> {
        // A process that has ended but has not been waited for still has its times.
        let ticks = loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
            let fields: Vec<_> = stat.rsplit_once(") ").context("a stat line")?.1.split(' ').collect();
            if fields[0] == "Z" {
                break fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(self.child.wait()?.success(), "it failed");
        Ok(Duration::from_millis(ticks * 10))
    }

    pub fn rss_mib(&self) -> anyhow::Result<f64> {
        Ok(self.status("VmRSS:")? as f64 / 1024.0)
    }

    pub fn peak_rss_mib(&self) -> anyhow::Result<f64> {
        Ok(self.status("VmHWM:")? as f64 / 1024.0)
    }

    /// Voluntary context switches of all threads: how often the process woke up.
    pub fn context_switches(&self) -> anyhow::Result<u64> {
        let mut switches = 0;
        for thread in self.threads()? {
            switches += field(&thread?.path().join("status"), "voluntary_ctxt_switches:")?;
        }
        Ok(switches)
    }

    fn threads(&self) -> anyhow::Result<std::fs::ReadDir> {
        Ok(std::fs::read_dir(format!("/proc/{}/task", self.child.id()))?)
    }

    fn status(&self, name: &str) -> anyhow::Result<u64> {
        field(format!("/proc/{}/status", self.child.id()).as_ref(), name)
    }
}

fn field(path: &Path, name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a status line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
