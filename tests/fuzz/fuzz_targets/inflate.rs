//! Any compressed body stays within its limit and its budget.

#![no_main]

use libfuzzer_sys::fuzz_target;
use variance_connector::inflate::{Encoding, InflateError, NoRoom, inflate};

fuzz_target!(|input: (bool, u16, u16, &[u8])| {
    let (is_gzip, limit, budget, compressed) = input;
    let encoding = if is_gzip { Encoding::Gzip } else { Encoding::Deflate };
    let (limit, budget) = (usize::from(limit) * 16, usize::from(budget) * 16);
    let mut taken = 0;
    let unpacked = inflate(encoding, compressed, limit, |more| {
        taken += more;
        if taken <= budget { Ok(()) } else { Err(NoRoom) }
    });
    match unpacked {
        Ok(unpacked) => assert!(unpacked.len() <= taken && unpacked.capacity() <= taken && taken <= limit.min(budget)),
        Err(InflateError::NoRoom(NoRoom)) => assert!(taken > budget),
        Err(InflateError::Corrupt(named)) => assert_eq!(named, encoding),
        Err(InflateError::TooLarge) => assert_eq!(taken, limit),
    }
});
