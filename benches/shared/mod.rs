//! Parts that the benchmarks of the whole program share.

pub mod events;
pub mod process;
pub mod sender;

/// The token that a sender must present to the connector.
pub const TOKEN: &str = "a-token-for-the-benchmark";

/// Returns the end of the request at the start of `bytes`, and the start of its body, if the request is whole.
pub fn request_end(bytes: &[u8]) -> Option<(usize, usize)> {
    const NAME: &[u8] = b"content-length: ";
    let mut at = 0;
    let mut length = 0;
    loop {
        let end = at + bytes[at..].iter().position(|&byte| byte == b'\n')?;
        let line = &bytes[at..end];
        if line == b"\r" {
            return Some((end + 1 + length, end + 1)).filter(|(end, _)| *end <= bytes.len());
        }
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            length = std::str::from_utf8(&line[NAME.len()..]).ok()?.trim().parse().ok()?;
        }
        at = end + 1;
    }
}
