//! No body costs more than its bytes can pay for: allocations grow linearly with them, and a message takes at most
//! twice its event and 4 KiB.

#![no_main]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::SystemTime,
};

use libfuzzer_sys::fuzz_target;
use variance_connector::{
    mapping::{MappingSettings, NamePattern},
    posthog::Body,
    variance::Call,
};

/// Counts the bytes that were ever allocated. Whatever is copied, unescaped, collected or written allocates some.
struct Counting;

static ASKED_FOR: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED_FOR.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED_FOR.fetch_add(size, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// For each byte of the body: unescaping, encoding and writing make some copies of it.
const PER_BYTE: usize = 40;

/// For each quote, since two of them make a key: the key's place in the collections.
const PER_QUOTE: usize = 120;

/// For each element: its message, the buffer in which that is written, and room for some properties.
const PER_ELEMENT: usize = 16 << 10;

fuzz_target!(|text: &str| {
    let settings = MappingSettings {
        calls: Call::ALL.to_vec(),
        keep_properties: vec![NamePattern::Prefix("$s".to_owned())],
        person_traits: true,
        account_group: Some("company".to_owned()),
        ..MappingSettings::default()
    };
    let before = ASKED_FOR.load(Relaxed);
    let (mut scratch, mut elements) = (Vec::new(), 1);
    let body = Body::parse(text, |element| {
        elements += 1;
        let Ok(event) = element.event else { return };
        drop(event.key());
        if let Ok(message) = settings.message(&event, SystemTime::UNIX_EPOCH, &mut scratch) {
            assert!(message.allocated() <= 2 * element.raw.as_str().len() + 4096);
        }
    });
    drop(body);
    let asked_for = ASKED_FOR.load(Relaxed) - before;
    let quotes = text.bytes().filter(|byte| *byte == b'"').count();
    let bound = PER_BYTE * text.len() + PER_QUOTE * quotes + PER_ELEMENT * elements;
    assert!(asked_for <= bound, "{asked_for} bytes were asked for, and {bound} are enough");
});
