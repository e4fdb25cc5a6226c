//! The decompression of bodies that cannot be trusted.
//!
//! A few bytes can stand for gigabytes, so memory is allocated as the output grows, the caller is asked before each
//! step, and nothing is kept beyond the limit: a bomb costs what an honest body of that size costs.

use std::io::{self, Read};

use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};
use http::{HeaderMap, header::CONTENT_ENCODING};

/// The least memory that is allocated at once.
const MIN_STEP: usize = 16 << 10;

/// The most members of a gzip body: two for each element that a body may have, since some writers end a member after
/// each line. Each costs microseconds, even if it is empty, so an endless row of them would keep a processor busy for
/// seconds.
const MAX_MEMBERS: usize = 20_000;

/// The compression of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 1952, with one member or many.
    Gzip,
    /// RFC 1950 ("zlib"), which is what `deflate` means in HTTP (RFC 9110, section 8.4.1.2), or a bare RFC 1951, which
    /// is what some senders take it to mean.
    Deflate,
}

/// The error of a content encoding that cannot be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the content encoding must be `gzip`, `deflate` or none, and not more than one")]
pub struct Unsupported;

/// The error of a body for which there is no room at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connector is reading as many bodies as it can: send the request again later")]
pub struct NoRoom;

/// The reason why a body could not be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// The body is damaged, cut short, followed by something else, in too many pieces, or not compressed at all.
    #[error("the body is not valid {}", .0.name())]
    Corrupt(Encoding),
    /// The body would be larger than the limit.
    #[error("the body is too large when unpacked")]
    TooLarge,
    /// The caller had no room for the body.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

impl Encoding {
    /// Returns the encoding that the headers name, or `None` if they name none.
    ///
    /// # Errors
    /// When the headers name another encoding, or several on top of each other.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Unsupported> {
        let mut encoding = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            for name in value.to_str().map_err(|_| Unsupported)?.split(',') {
                let layer = match &*name.trim().to_ascii_lowercase() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "deflate" => Self::Deflate,
                    _ => return Err(Unsupported),
                };
                if encoding.replace(layer).is_some() {
                    return Err(Unsupported);
                }
            }
        }
        Ok(encoding)
    }

    /// Recognises the encoding by the body's first bytes (RFC 1952, section 2.3.1), with which no JSON begins: some
    /// senders compress a body and do not say so.
    pub fn of_content(body: &[u8]) -> Option<Self> {
        body.starts_with(&[0x1f, 0x8b]).then_some(Self::Gzip)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

/// Unpacks `compressed` to at most `limit` bytes.
///
/// Before each allocation it asks `grow` for that many more bytes; their sum is what the result occupies. Unpacking
/// keeps a processor busy for about as long as copying `limit` bytes a few times.
///
/// # Errors
/// See [`InflateError`]. The memory that `grow` has granted is free again by then.
pub fn inflate(
    encoding: Encoding,
    compressed: &[u8],
    limit: usize,
    mut grow: impl FnMut(usize) -> Result<(), NoRoom>,
) -> Result<Vec<u8>, InflateError> {
    let corrupt = |_: io::Error| InflateError::Corrupt(encoding);
    let mut unpacker = Unpacker::new(encoding, compressed);
    let mut unpacked = Vec::new();
    let mut taken = 0;
    while taken < limit {
        // The first step is a guess at how JSON of that size unpacks; each later one doubles the memory.
        let step = taken.max(compressed.len().saturating_mul(4)).max(MIN_STEP).min(limit - taken);
        grow(step)?;
        taken += step;
        let space = taken - unpacked.len();
        unpacked.reserve_exact(space);
        // `read_to_end` allocates nothing itself when there is space for all that it may read.
        if (&mut unpacker).take(space as u64).read_to_end(&mut unpacked).map_err(corrupt)? < space {
            return Ok(unpacked);
        }
    }
    match unpacker.read(&mut [0]).map_err(corrupt)? {
        0 => Ok(unpacked),
        _ => Err(InflateError::TooLarge),
    }
}

/// Unpacks `compressed` to at most `limit` bytes without keeping them: `show` is given each piece as it comes.
///
/// # Errors
/// See [`InflateError`]; there is always room.
pub fn inflate_in_pieces(
    encoding: Encoding,
    compressed: &[u8],
    limit: usize,
    mut show: impl FnMut(&[u8]),
) -> Result<(), InflateError> {
    let mut unpacker = Unpacker::new(encoding, compressed);
    let (mut piece, mut total) = (vec![0; 4 * MIN_STEP], 0);
    loop {
        let len = unpacker.read(&mut piece).map_err(|_| InflateError::Corrupt(encoding))?;
        total += len;
        match len {
            0 => return Ok(()),
            _ if total > limit => return Err(InflateError::TooLarge),
            _ => show(&piece[..len]),
        }
    }
}

/// The contents of a compressed body, after whose end nothing else may follow.
enum Unpacker<'a> {
    Gzip(Members<'a>),
    Zlib(ZlibDecoder<&'a [u8]>),
    Bare(DeflateDecoder<&'a [u8]>),
}

impl<'a> Unpacker<'a> {
    fn new(encoding: Encoding, compressed: &'a [u8]) -> Self {
        // A zlib header names method 8 and is a multiple of 31 (RFC 1950, section 2.2). A bare stream that began like
        // that would begin with a stored block whose padding is not zero, which no compressor writes.
        let is_zlib = matches!(compressed, [method, flags, ..]
            if method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31));
        match encoding {
            Encoding::Gzip => Self::Gzip(Members { member: GzDecoder::new(compressed), left: MAX_MEMBERS }),
            Encoding::Deflate if is_zlib => Self::Zlib(ZlibDecoder::new(compressed)),
            Encoding::Deflate => Self::Bare(DeflateDecoder::new(compressed)),
        }
    }
}

impl Read for Unpacker<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (read, rest) = match self {
            Self::Gzip(members) => return members.read(buffer),
            Self::Zlib(decoder) => (decoder.read(buffer)?, *decoder.get_ref()),
            Self::Bare(decoder) => (decoder.read(buffer)?, *decoder.get_ref()),
        };
        match (read, rest) {
            (0, [_, ..]) => Err(io::ErrorKind::InvalidData.into()),
            (read, _) => Ok(read),
        }
    }
}

/// The members of a gzip body, one after the other, and the zeros or line ends that some writers put after them.
struct Members<'a> {
    member: GzDecoder<&'a [u8]>,
    left: usize,
}

impl Read for Members<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.member.read(buffer)?;
            let rest = *self.member.get_ref();
            if read > 0 || rest.iter().all(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
                return Ok(read);
            }
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
            self.member = GzDecoder::new(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };

    use super::*;

    const LIMIT: usize = 1 << 20;
    const PACKERS: [(Encoding, Pack); 3] =
        [(Encoding::Gzip, gzip), (Encoding::Deflate, zlib), (Encoding::Deflate, bare)];

    type Pack = fn(&[u8]) -> Vec<u8>;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn bare(data: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Returns the result, and how much memory was asked for.
    fn unpack(encoding: Encoding, compressed: &[u8], limit: usize) -> (Result<Vec<u8>, InflateError>, usize) {
        let mut taken = 0;
        let unpacked = inflate(encoding, compressed, limit, |more| {
            taken += more;
            Ok(())
        });
        assert!(taken <= limit);
        let mut in_pieces = Vec::new();
        let shown = inflate_in_pieces(encoding, compressed, limit, |piece| in_pieces.extend_from_slice(piece));
        assert_eq!(shown.map(|()| in_pieces), unpacked);
        if let Ok(unpacked) = &unpacked {
            assert!(unpacked.capacity() <= taken, "{} bytes were not announced", unpacked.capacity() - taken);
        }
        (unpacked, taken)
    }

    /// Returns bytes that do not compress.
    fn noise(len: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(1);
        std::iter::repeat_with(|| random.u8(..)).take(len).collect()
    }

    #[test]
    fn gives_back_what_was_packed() {
        let mut members = gzip(b"{\"a\":");
        members.extend(gzip(b""));
        members.extend(gzip(b"1}"));
        let packed_twice = gzip(&gzip(b"{}"));
        let large = noise(300_000);
        for (what, encoding, compressed, expected) in [
            ("gzip", Encoding::Gzip, gzip(b"{}"), &b"{}"[..]),
            ("gzip of several members", Encoding::Gzip, members, b"{\"a\":1}"),
            ("gzip in gzip, of which only one layer counts", Encoding::Gzip, packed_twice, &gzip(b"{}")),
            ("gzip of nothing", Encoding::Gzip, gzip(b""), b""),
            ("zlib", Encoding::Deflate, zlib(b"{}"), b"{}"),
            ("zlib of nothing", Encoding::Deflate, zlib(b""), b""),
            ("a bare stream", Encoding::Deflate, bare(b"{}"), b"{}"),
            ("a bare stream of nothing", Encoding::Deflate, bare(b""), b""),
            ("noise in gzip", Encoding::Gzip, gzip(&large), &large),
            ("noise in zlib", Encoding::Deflate, zlib(&large), &large),
            ("noise in a bare stream", Encoding::Deflate, bare(&large), &large),
        ] {
            assert_eq!(unpack(encoding, &compressed, LIMIT).0.as_deref(), Ok(expected), "{what}");
        }
    }

    #[test]
    fn refuses_what_is_damaged_or_cut_short_or_goes_on() {
        let large = noise(100_000);
        for (encoding, pack) in PACKERS {
            let corrupt = Err(InflateError::Corrupt(encoding));
            let whole = pack(b"{\"event\":\"signed up\"}");
            for cut in 0..whole.len() {
                assert_eq!(unpack(encoding, &whole[..cut], LIMIT).0, corrupt, "{encoding:?} cut to {cut}");
            }
            let whole = pack(&large);
            assert_eq!(unpack(encoding, &whole[..whole.len() / 2], LIMIT).0, corrupt, "{encoding:?} cut in half");
            for rest in [&b"\0"[..], b"\r\n", &[0; 4096], b"\0garbage", b"garbage", b" "] {
                let longer = [&whole, rest].concat();
                let expected = match encoding {
                    Encoding::Gzip if rest.iter().all(|byte| b"\0\r\n".contains(byte)) => Ok(large.clone()),
                    Encoding::Gzip | Encoding::Deflate => corrupt.clone(),
                };
                assert_eq!(unpack(encoding, &longer, LIMIT).0, expected, "{encoding:?} and {rest:?}");
            }
            for garbage in [&b""[..], b"{\"event\":\"plain\"}", b"\x1f", b"\x1f\x8b", b"\xff\xff\xff\xff", b"\x78\x9c"]
            {
                assert_eq!(unpack(encoding, garbage, LIMIT).0, corrupt, "{garbage:?}");
            }
        }
        let mut altered = gzip(&large);
        altered[50_000] ^= 1;
        assert_eq!(unpack(Encoding::Gzip, &altered, LIMIT).0, Err(InflateError::Corrupt(Encoding::Gzip)));
    }

    #[test]
    fn a_body_in_very_many_pieces_is_refused() {
        for piece in [&b""[..], b"x"] {
            let bomb = gzip(piece).repeat(MAX_MEMBERS + 2);
            assert_eq!(unpack(Encoding::Gzip, &bomb, LIMIT).0, Err(InflateError::Corrupt(Encoding::Gzip)));
        }
        let lines = gzip(b"{}\n").repeat(10_000);
        assert_eq!(unpack(Encoding::Gzip, &lines, LIMIT).0.as_deref(), Ok(&*b"{}\n".repeat(10_000)));
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let zeros = vec![0; 16 << 20];
        for (encoding, pack) in PACKERS {
            let bomb = pack(&zeros);
            assert!(bomb.len() < zeros.len() / 1000);
            assert_eq!(unpack(encoding, &bomb, LIMIT), (Err(InflateError::TooLarge), LIMIT));
        }
    }

    #[test]
    fn the_limit_may_be_reached_and_not_passed_by_one_byte() {
        for len in [0, 1, MIN_STEP - 1, MIN_STEP, MIN_STEP + 1, 200_000] {
            let data = noise(len);
            for (encoding, pack) in PACKERS {
                let compressed = pack(&data);
                assert_eq!(unpack(encoding, &compressed, len).0.as_deref(), Ok(&*data), "{len}");
                if len > 0 {
                    assert_eq!(unpack(encoding, &compressed, len - 1).0, Err(InflateError::TooLarge), "{len}");
                }
                let cut = &compressed[..compressed.len() - 1];
                assert_eq!(unpack(encoding, cut, len).0, Err(InflateError::Corrupt(encoding)), "{len}");
            }
        }
    }

    #[test]
    fn takes_no_memory_that_it_is_not_given() {
        let bomb = gzip(&vec![0; LIMIT]);
        let mut budget = 100_000_usize;
        let unpacked = inflate(Encoding::Gzip, &bomb, LIMIT, |more| {
            budget = budget.checked_sub(more).ok_or(NoRoom)?;
            Ok(())
        });
        assert_eq!(unpacked, Err(InflateError::NoRoom(NoRoom)));
        assert!(budget < 100_000, "the first steps fitted");
    }

    #[test]
    fn gzip_shows_by_its_first_bytes() {
        for (body, encoding) in [
            (gzip(b"{}"), Some(Encoding::Gzip)),
            (zlib(b"{}"), None),
            (b"{}".to_vec(), None),
            (b"\x1f".to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(Encoding::of_content(&body), encoding, "{body:?}");
        }
    }

    #[test]
    fn one_layer_of_a_known_encoding_is_supported() {
        let of = |values: &[&[u8]]| {
            let headers = values.iter().map(|value| (CONTENT_ENCODING, value.to_vec().try_into().unwrap())).collect();
            Encoding::of(&headers)
        };
        for (values, expected) in [
            (&[][..], Ok(None)),
            (&[&b""[..]], Ok(None)),
            (&[b"identity"], Ok(None)),
            (&[b"gzip"], Ok(Some(Encoding::Gzip))),
            (&[b" GZip "], Ok(Some(Encoding::Gzip))),
            (&[b"x-gzip"], Ok(Some(Encoding::Gzip))),
            (&[b"deflate"], Ok(Some(Encoding::Deflate))),
            (&[b"identity, gzip"], Ok(Some(Encoding::Gzip))),
            (&[b"identity", b"gzip"], Ok(Some(Encoding::Gzip))),
            (&[b"gzip, gzip"], Err(Unsupported)),
            (&[b"gzip", b"deflate"], Err(Unsupported)),
            (&[b"br"], Err(Unsupported)),
            (&[b"gzip-js"], Err(Unsupported)),
            (&[b"gz\xffip"], Err(Unsupported)),
        ] {
            assert_eq!(of(values), expected, "{values:?}");
        }
    }
}
