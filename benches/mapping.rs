//! The cost of decoding, filtering and mapping by themselves: `cargo bench --bench mapping`.

#[expect(unreachable_pub, dead_code, reason = "shared with the other benchmarks")]
#[path = "shared/events.rs"]
mod events;

use std::time::SystemTime;

use divan::{Bencher, counter::ItemsCount};
use variance_connector::{mapping, posthog::Body};

fn main() {
    divan::main();
}

/// Maps a batch of one kind of event, by the place of that kind among five.
#[divan::bench(args = ["0 filtered", "1 page", "2 identify", "3 capture"])]
fn event_of_2_kb(bencher: Bencher<'_, '_>, kind: &str) {
    const EVENTS: u64 = 100;
    let place = u64::from(kind.as_bytes()[0] - b'0');
    let mut body = String::from("[");
    for number in 0..EVENTS {
        body.push_str(if number > 0 { "," } else { "" });
        events::write_event(&mut body, number * 5 + place);
    }
    body.push(']');
    let settings = mapping::MappingSettings::default();
    let mut scratch = Vec::new();
    bencher.counter(ItemsCount::new(EVENTS)).bench_local(|| {
        let body = Body::parse(&body, |element| {
            let event = element.event.expect("it is one");
            drop(divan::black_box(settings.message(&event, SystemTime::UNIX_EPOCH, &mut scratch)));
        });
        body.expect("it is one")
    });
}
