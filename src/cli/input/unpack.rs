//! The compression of a file, recognised by its first bytes, and by its name only where they leave it open.

use std::{
    io::{self, BufRead, BufReader, Cursor, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use brotli_decompressor::Decompressor;
use flate2::bufread::GzDecoder;

/// The number of bytes that show what a file is, if it has as many.
const HEAD: usize = 4 << 10;

/// The least number of them, if the file has as many: a pipe may give a few and then make us wait.
const MIN_HEAD: usize = 8;

const BUFFER: usize = 64 << 10;
/// The mark that some editors put before UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A stream that counts the bytes read from it.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Returns the text of a stream, compressed or not, and counts the bytes as they come, before they are unpacked.
///
/// # Errors
/// When the stream cannot be read, or is neither text nor compressed in a way that can be undone.
pub(super) fn unpack(stream: impl Read + 'static, name: &str, count: Arc<AtomicU64>) -> io::Result<Box<dyn BufRead>> {
    let mut stream = Counted { inner: stream, count };
    let mut head = vec![0; HEAD];
    let mut len = 0;
    while len < MIN_HEAD {
        match stream.read(&mut head[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(len);
    let kind = Kind::of(&head, name).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(head).chain(stream));
    Ok(match kind {
        Kind::Text => Box::new(whole),
        Kind::Gzip => Box::new(BufReader::with_capacity(BUFFER, Gzip::new(whole))),
        Kind::Brotli => Box::new(BufReader::with_capacity(BUFFER, Brotli(Decompressor::new(whole, BUFFER)))),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Gzip,
    Brotli,
}

impl Kind {
    fn of(head: &[u8], name: &str) -> Result<Self, &'static str> {
        let is_named_brotli = name.to_ascii_lowercase().ends_with(".br");
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [b'P', b'A', b'R', b'1', ..] => Err("this is Parquet: export in the format JSONLines instead"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Err("this is packed with zstd: unpack it first (`zstd -dc`)"),
            [b'P', b'K', 3, 4, ..] => Err("this is a zip archive: unpack it first"),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err("this is UTF-16: convert it to UTF-8 first"),
            _ if is_named_brotli && !(opens_json(head) && is_text(head)) => Ok(Self::Brotli),
            _ if opens_json(head) || is_text(head) => Ok(Self::Text),
            _ if unpacks_to_json(head) => Ok(Self::Brotli),
            _ => Err("this is neither text nor gzip nor Brotli: give PostHog's events as JSON Lines"),
        }
    }
}

fn opens_json(text: &[u8]) -> bool {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    matches!(text.trim_ascii_start().first(), Some(b'{' | b'['))
}

/// True if these bytes, which may end within a character, are text.
fn is_text(head: &[u8]) -> bool {
    let is_utf8 = std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
    is_utf8 && !head.contains(&0)
}

/// True for Brotli, which has no signature: hardly anything else unpacks to JSON.
fn unpacks_to_json(head: &[u8]) -> bool {
    let mut text = [0; 64];
    let read = Decompressor::new(head, HEAD).read(&mut text);
    read.is_ok_and(|read| opens_json(&text[..read]))
}

/// A gzip stream of any number of members. Zeros and line ends between and after them are skipped: tapes leave them,
/// and so does concatenation.
struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Gzip<R> {
    fn new(stream: R) -> Self {
        Self(Some(GzDecoder::new(stream)))
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            match member.read(buffer)? {
                0 if !buffer.is_empty() => {}
                read => return Ok(read),
            }
            let Some(mut stream) = self.0.take().map(GzDecoder::into_inner) else { break };
            while matches!(stream.fill_buf()?.first(), Some(0 | b'\r' | b'\n')) {
                stream.consume(1);
            }
            self.0 = (!stream.fill_buf()?.is_empty()).then(|| GzDecoder::new(stream));
        }
        Ok(0)
    }
}

/// A Brotli stream with nothing after it.
struct Brotli<R: Read>(Decompressor<R>);

impl<R: Read> Read for Brotli<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.0.read(buffer) {
            // The decompressor reports bytes after the end only on the second call.
            Ok(0) if !buffer.is_empty() => self.0.read(buffer),
            read => read,
        };
        read.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "corrupt or truncated Brotli stream"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_more_than_a_name() {
        let brotli = include_bytes!("../../../tests/it/fixtures/export.jsonl.br");
        for (head, name, kind) in [
            (&b"{\"event\":1}"[..], "a.gz", Ok(Kind::Text)),
            (b"", "a", Ok(Kind::Text)),
            (b"", "a.br", Ok(Kind::Brotli)),
            (b"hello", "a", Ok(Kind::Text)),
            (b" [", "a.br", Ok(Kind::Text)),
            (b"\xef\xbb\xbf{", "a", Ok(Kind::Text)),
            (b"{\"caf\xe9\":1}", "a", Ok(Kind::Text)),
            (b"\x1f\x8b\x08", "a.br", Ok(Kind::Gzip)),
            (brotli, "a.BR", Ok(Kind::Brotli)),
            (brotli, "-", Ok(Kind::Brotli)),
            (b"PAR1\0", "a.parquet", Err("Parquet")),
            (b"\xff\xfe{\0", "a", Err("UTF-16")),
            (b"\x7fELF\x02\x01\x01\0\0\0", "a", Err("neither text")),
        ] {
            match (Kind::of(head, name), kind) {
                (Err(is), Err(expected)) => assert!(is.contains(expected), "{is}"),
                (is, expected) => assert_eq!(is, expected, "{name} {head:?}"),
            }
        }
    }

    #[test]
    fn members_of_gzip_may_be_parted_and_followed_by_zeros_and_line_ends() {
        let packed = include_bytes!("../../../tests/it/fixtures/export.jsonl.gz");
        let plain = include_bytes!("../../../tests/it/fixtures/export.jsonl");
        let unpacked = |stream: Vec<u8>| {
            let mut text = Vec::new();
            let read = unpack(Cursor::new(stream), "a.gz", Arc::default()).unwrap().read_to_end(&mut text);
            read.map(|_| text)
        };
        for between in ["", "\0\0\0", "\n", "\r\n\0"] {
            let stream = [packed, between.as_bytes(), packed, between.as_bytes()].concat();
            assert_eq!(unpacked(stream).unwrap(), [&plain[..], plain].concat(), "{between:?}");
        }
        for rest in ["x", "\0x", "\x1f"] {
            assert!(unpacked([packed, rest.as_bytes()].concat()).is_err(), "{rest:?}");
        }
        assert!(unpacked(packed[..packed.len() - 4].to_vec()).is_err());
    }
}
