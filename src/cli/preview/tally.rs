//! Counts of events by what would become of them.

use std::{collections::BTreeMap, fmt};

use crate::{
    cli::input::{Place, Reason},
    mapping::Filtered,
    variance::Call,
};

/// The most names and reasons that are told apart: more are counted together.
const MAX_GROUPS: usize = 1000;

/// The most places that are named for each reason.
const MAX_PLACES: usize = 20;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    calls: [u64; Call::ALL.len()],
    filtered: BTreeMap<(String, String), u64>,
    invalid: BTreeMap<String, (u64, Vec<String>)>,
}

impl Tally {
    pub(super) fn mapped(&mut self, call: Call) {
        self.calls[call as usize] += 1;
    }

    pub(super) fn filtered(&mut self, name: &[u8], reason: Filtered) {
        let name = String::from_utf8_lossy(name).escape_debug().to_string();
        let mut key = (name, reason.to_string());
        if self.filtered.len() >= MAX_GROUPS && !self.filtered.contains_key(&key) {
            key.0 = "others".to_owned();
        }
        *self.filtered.entry(key).or_default() += 1;
    }

    pub(super) fn invalid(&mut self, place: Place<'_>, Reason { kind, detail }: Reason) {
        let (count, places) = self.invalid.entry(kind).or_default();
        *count += 1;
        if places.len() < MAX_PLACES {
            places.push(if detail.is_empty() { place.to_string() } else { format!("{place} ({detail})") });
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapped: u64 = self.calls.iter().sum();
        let filtered: u64 = self.filtered.values().sum();
        let invalid: u64 = self.invalid.values().map(|(count, _)| count).sum();
        let total = mapped + filtered + invalid;
        let width = total.to_string().len().max(5);
        writeln!(f, "{total:>width$}  events")?;
        writeln!(f, "{mapped:>width$}  would be posted")?;
        for (call, count) in Call::ALL.iter().zip(self.calls).filter(|(_, count)| *count > 0) {
            writeln!(f, "  {count:>width$}  {call} (type {})", call.type_name())?;
        }
        writeln!(f, "{filtered:>width$}  filtered")?;
        for ((name, reason), count) in &self.filtered {
            writeln!(f, "  {count:>width$}  {name}: {reason}")?;
        }
        writeln!(f, "{invalid:>width$}  invalid")?;
        for (reason, (count, places)) in &self.invalid {
            let more = if *count > places.len() as u64 { ", …" } else { "" };
            writeln!(f, "  {count:>width$}  {reason}: {}{more}", places.join(", "))?;
        }
        Ok(())
    }
}
