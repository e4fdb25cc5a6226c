//! The cost of forwarding, end to end: `cargo bench --bench forward`.
//!
//! Starts a cheap receiver with the real binary in front of it, drives each case and prints its CPU time per forwarded
//! event beside that of a bare `reqwest` loop that posts a ready body to the same receiver. The loop runs before and
//! after each case, so that a machine whose speed varies over time does not change the ratio. Only ratios can be
//! compared between machines, and one round says little on cores that others use: each case runs in several rounds, and
//! the least, the median and the most are printed.
//!
//! `cargo bench --bench forward -- batch` runs the cases whose name has `batch` in it; the other names are `webhook`,
//! `flat`, `latency` and `rest`. `--events N` sets how many events a case forwards in a round, `--rounds N` how many
//! rounds there are. `--against PATH` runs another build of the binary in turns with this one, and prints what this one
//! costs beside it.

#![expect(unreachable_pub, reason = "nothing can be reached from outside of a benchmark")]

mod receiver;
#[path = "../shared/mod.rs"]
mod shared;
mod yardstick;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use shared::{process::Process, sender::Sender};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.first().map(String::as_str) {
        Some("receiver") => return shared::accept(receiver::serve),
        Some("yardstick") => return yardstick::run(&args[1], args[2].parse()?),
        _ => {}
    }
    let mut wanted = String::new();
    let (mut events, mut rounds, mut against) = (100_000, 5, None);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--events" => events = args.next().unwrap_or_default().parse()?,
            "--rounds" => rounds = args.next().unwrap_or_default().parse()?,
            "--against" => against = args.next().map(PathBuf::from),
            other => wanted = other.to_owned(),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let receiver = Process::receiver(&[])?;
        let is_wanted = |name: &str| name.contains(&wanted);
        cases(&receiver, &is_wanted, events, rounds, against.as_deref()).await?;
        if is_wanted("flat") {
            flat(&receiver).await?;
        }
        if is_wanted("latency") {
            latency(&receiver).await?;
        }
        if is_wanted("rest") {
            at_rest(&receiver).await?;
        }
        Ok(())
    })
}

/// The most turns of each build in a round.
const MOST_TURNS: usize = 20;

/// CPU time and elapsed time of one forwarded event, in microseconds.
#[derive(Clone, Copy)]
struct Cost {
    cpu: f64,
    wall: f64,
}

impl Cost {
    fn mean(costs: &[Self]) -> Self {
        let mean = |part: fn(&Self) -> f64| costs.iter().map(part).sum::<f64>() / costs.len() as f64;
        Self { cpu: mean(|cost| cost.cpu), wall: mean(|cost| cost.wall) }
    }
}

/// The measurements of a case, round by round.
#[derive(Default)]
struct Rounds {
    cpu: Vec<f64>,
    loops_cpu: Vec<f64>,
    ratio: Vec<f64>,
    throughput: Vec<f64>,
    /// The ratio to the other build.
    against: Vec<f64>,
    peak_mib: f64,
}

/// Measures each way to send beside the bare loop, and beside another build.
async fn cases(
    receiver: &Process,
    is_wanted: &dyn Fn(&str) -> bool,
    events: usize,
    rounds: usize,
    against: Option<&Path>,
) -> anyhow::Result<()> {
    let cases = [
        ("batch of 10, 4 at once", "/batch", 10, 4),
        ("batch of 100, 4 at once", "/batch", 100, 4),
        ("batch of 1000, 4 at once", "/batch", 1000, 4),
        ("batch of 5000, 4 at once", "/batch", 5000, 4),
        ("webhook, 64 connections", "/webhook", 1, 64),
    ];
    let mut cases: Vec<_> = cases
        .into_iter()
        .filter(|(name, ..)| is_wanted(name))
        .map(|(name, path, per_request, connections)| (name, path, per_request, connections, Rounds::default()))
        .collect();
    if cases.is_empty() || rounds == 0 {
        return Ok(());
    }
    for _ in 0..rounds {
        let mut before = yardstick(receiver, events)?;
        for (_, path, per_request, connections, measured) in &mut cases {
            let builds: Vec<&Path> = [Process::CONNECTOR.as_ref()].into_iter().chain(against).collect();
            let costs = case(&builds, receiver, path, *per_request, *connections, events).await?;
            let (cost, peak_mib) = costs[0];
            let after = yardstick(receiver, events)?;
            let beside = Cost::mean(&[before, after]);
            measured.cpu.push(cost.cpu);
            measured.loops_cpu.push(beside.cpu);
            measured.ratio.push(cost.cpu / beside.cpu);
            measured.throughput.push(beside.wall / cost.wall);
            measured.peak_mib = measured.peak_mib.max(peak_mib);
            measured.against.extend(costs.get(1).map(|(other, _)| cost.cpu / other.cpu));
            before = after;
        }
    }
    println!("{events} events of about 2 kB, 20 % of them filtered; the loop posts as many as are forwarded");
    println!("{rounds} rounds: least, median, most\n");
    let (head, line) = if against.is_some() { (" to the other build |", "---|") } else { ("", "") };
    println!("| case | CPU µs per forwarded event | the loop's | ratio | throughput to the loop's | peak RSS |{head}");
    println!("|---|---|---|---|---|---|{line}");
    for (name, .., measured) in cases {
        let Rounds { cpu, loops_cpu, ratio, throughput, against, peak_mib } = measured;
        let other = if against.is_empty() { String::new() } else { format!(" {} |", spread(against, 2)) };
        println!(
            "| {name} | {} | {} | {} | {} | {peak_mib:.0} MiB |{other}",
            spread(cpu, 1),
            spread(loops_cpu, 1),
            spread(ratio, 2),
            spread(throughput, 2),
        );
    }
    Ok(())
}

/// Runs one case for one round. Returns for each build the cost of an event, and the most memory in MiB.
///
/// The builds take turns, many in a round, so that what the machine does beside them hits all alike. A turn has at least four
/// requests for each connection.
async fn case(
    builds: &[&Path],
    receiver: &Process,
    path: &'static str,
    per_request: usize,
    connections: usize,
    events: usize,
) -> anyhow::Result<Vec<(Cost, f64)>> {
    let turns = (events / (4 * per_request * connections)).clamp(1, MOST_TURNS);
    let connectors = builds.iter().map(|build| connector(build, receiver)).collect::<anyhow::Result<Vec<_>>>()?;
    for connector in &connectors {
        // Warm: connections, allocator, branch predictors.
        Sender::new(connector.address(), path, per_request).send(events / MOST_TURNS, connections).await?;
    }
    let mut costs = vec![Vec::new(); builds.len()];
    for _ in 0..turns {
        for (connector, costs) in connectors.iter().zip(&mut costs) {
            let sender = Sender::new(connector.address(), path, per_request);
            costs.push(measured(connector, sender, events / turns, connections).await?);
        }
    }
    connectors.iter().zip(costs).map(|(connector, costs)| Ok((Cost::mean(&costs), connector.peak_rss_mib()?))).collect()
}

/// Formats the least, the median and the most.
fn spread(mut values: Vec<f64>, decimals: usize) -> String {
    values.sort_by(f64::total_cmp);
    let [least, median, most] = [0, values.len() / 2, values.len() - 1].map(|at| values[at]);
    format!("{least:.decimals$} / {median:.decimals$} / {most:.decimals$}")
}

fn connector(binary: &Path, receiver: &Process) -> anyhow::Result<Process> {
    Process::start(binary, receiver.address(), &[], Stdio::inherit())
}

fn yardstick(receiver: &Process, events: usize) -> anyhow::Result<Cost> {
    let events = events * 4 / 5;
    let start = Instant::now();
    let cpu = Process::yardstick(receiver.address(), events)?.finish()?;
    Ok(Cost { cpu: per_event(cpu, events), wall: per_event(start.elapsed(), events) })
}

async fn measured(connector: &Process, sender: Sender, events: usize, connections: usize) -> anyhow::Result<Cost> {
    let (cpu, start) = (connector.cpu()?, Instant::now());
    let forwarded = sender.send(events, connections).await?;
    Ok(Cost { cpu: per_event(connector.cpu()? - cpu, forwarded), wall: per_event(start.elapsed(), forwarded) })
}

/// Measures whether an event costs the same however many came before it, and whether memory stays where it is.
async fn flat(receiver: &Process) -> anyhow::Result<()> {
    let connector = connector(Process::CONNECTOR.as_ref(), receiver)?;
    let sender = Sender::new(connector.address(), "/batch", 100);
    sender.send(10_000, 4).await?;
    println!("\n| events in batches of 100, one run after the other | CPU µs per forwarded event | RSS after it |");
    println!("|---|---|---|");
    for events in [1_000, 10_000, 100_000, 250_000, 250_000, 1_000_000] {
        let cost = measured(&connector, sender, events, 4).await?;
        println!("| {events} | {:.1} | {:.1} MiB |", cost.cpu, connector.rss_mib()?);
    }
    Ok(())
}

/// Measures how much longer an event takes through the connector than straight to the receiver, when neither is busy.
async fn latency(receiver: &Process) -> anyhow::Result<()> {
    let connector = connector(Process::CONNECTOR.as_ref(), receiver)?;
    let sender = Sender::new(connector.address(), "/webhook", 1);
    let straight = Sender::new(receiver.address(), "/", 1).latencies(2000, Duration::from_millis(2)).await?;
    let through = sender.latencies(2000, Duration::from_millis(2)).await?;
    println!("\n| latency of a webhook at 500 a second, in ms | p50 | p99 |\n|---|---|---|");
    println!("| straight to the receiver | {:.2} | {:.2} |", straight[1000], straight[1980]);
    println!("| through the connector | {:.2} | {:.2} |", through[1000], through[1980]);
    Ok(())
}

/// Measures what the connector takes when nothing happens.
async fn at_rest(receiver: &Process) -> anyhow::Result<()> {
    let start = Instant::now();
    let connector = connector(Process::CONNECTOR.as_ref(), receiver)?;
    let ready = start.elapsed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (switches, cpu) = (connector.context_switches()?, connector.cpu()?);
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!(
        "\nAt rest: ready after {} ms, RSS {:.1} MiB, {:.1} wake-ups and {:.2} ms of CPU a second",
        ready.as_millis(),
        connector.rss_mib()?,
        (connector.context_switches()? - switches) as f64 / 5.0,
        (connector.cpu()? - cpu).as_secs_f64() * 1000.0 / 5.0,
    );
    Ok(())
}

fn per_event(time: Duration, events: usize) -> f64 {
    time.as_secs_f64() * 1e6 / events as f64
}
