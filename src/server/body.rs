//! Reading a body within its bounds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::{Instant, timeout, timeout_at};

/// How long the rest of a body is read after an early reply, so that the sender gets to read that.
const DISCARD_FOR: Duration = Duration::from_secs(5);

/// Bytes that bodies may take together.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    used: Arc<AtomicUsize>,
    limit: usize,
}

/// Bytes taken from budgets; dropping it gives them back.
#[derive(Debug)]
pub(super) struct Charge {
    budgets: Vec<Budget>,
    bytes: usize,
}

/// There is no room for more in a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connector is reading as many bodies as it can")]
pub(super) struct Full;

impl Budget {
    /// A budget of that many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { used: Arc::default(), limit }
    }
}

impl Charge {
    /// Nothing yet, to grow within each of these budgets.
    pub(super) fn new(budgets: Vec<Budget>) -> Self {
        Self { budgets, bytes: 0 }
    }

    /// Takes more.
    ///
    /// # Errors
    /// When one of the budgets has no room for that. Nothing is taken then.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        for (index, budget) in self.budgets.iter().enumerate() {
            let grown = |used: usize| used.checked_add(bytes).filter(|used| *used <= budget.limit);
            if budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_err() {
                for budget in &self.budgets[..index] {
                    budget.used.fetch_sub(bytes, Ordering::Relaxed);
                }
                return Err(Full);
            }
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Takes more or gives some back, so that it is `bytes` in all.
    ///
    /// # Errors
    /// As [`Charge::grow`].
    pub(super) fn change_to(&mut self, bytes: usize) -> Result<(), Full> {
        let Some(less) = self.bytes.checked_sub(bytes) else { return self.grow(bytes - self.bytes) };
        for budget in &self.budgets {
            budget.used.fetch_sub(less, Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives back what is charged to the last budget, and leaves it.
    pub(super) fn leave_last(&mut self) {
        if let Some(budget) = self.budgets.pop() {
            budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        for budget in &self.budgets {
            budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// Why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// It is over the limit.
    TooLarge,
    /// There is no room for it now.
    Full,
    /// It was not there in time.
    TooLate,
    /// The sender broke off.
    BrokenOff,
}

/// Reads a whole body of at most `limit` bytes until `deadline`, charging each piece as it comes.
///
/// # Errors
/// Why the body is not there; what has not been read is left in `body`.
pub(super) async fn read(
    body: &mut Body,
    limit: usize,
    charge: &mut Charge,
    deadline: Instant,
) -> Result<Bytes, ReadError> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(ReadError::TooLarge);
    }
    let mut whole = Pieces::None;
    let mut len = 0;
    loop {
        let frame = match timeout_at(deadline, body.frame()).await {
            Err(_elapsed) => return Err(ReadError::TooLate),
            Ok(None) => return Ok(whole.into_bytes()),
            Ok(Some(Err(_))) => return Err(ReadError::BrokenOff),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(piece) = frame.into_data() else { continue };
        len += piece.len();
        if len > limit {
            return Err(ReadError::TooLarge);
        }
        charge.grow(piece.len()).map_err(|Full| ReadError::Full)?;
        whole = whole.and(piece, announced);
    }
}

/// Reads on for a while and throws away, so that the sender is not cut off before it has read its reply.
pub(super) async fn discard(mut body: Body) {
    let read = async { while let Some(Ok(_)) = body.frame().await {} };
    // If it takes longer, dropping the body closes the connection.
    drop(timeout(DISCARD_FOR, read).await);
}

/// A body so far: one piece stays as it is, since a webhook's body is one.
enum Pieces {
    None,
    One(Bytes),
    Many(BytesMut),
}

impl Pieces {
    fn and(self, piece: Bytes, announced: usize) -> Self {
        let (mut many, first) = match self {
            Self::None => return Self::One(piece),
            Self::One(first) => (BytesMut::with_capacity(announced.max(first.len() + piece.len())), first),
            Self::Many(many) => (many, Bytes::new()),
        };
        many.extend_from_slice(&first);
        many.extend_from_slice(&piece);
        Self::Many(many)
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::None => Bytes::new(),
            Self::One(piece) => piece,
            Self::Many(pieces) => pieces.freeze(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_takes_from_all_its_budgets_or_none_and_gives_all_back() {
        let (small, large) = (Budget::new(10), Budget::new(100));
        let used = |budget: &Budget| budget.used.load(Ordering::Relaxed);
        let mut charge = Charge::new(vec![large.clone(), small.clone()]);
        assert_eq!(charge.grow(8), Ok(()));
        assert_eq!(charge.grow(3), Err(Full));
        assert_eq!((used(&large), used(&small)), (8, 8));
        charge.leave_last();
        assert_eq!((used(&large), used(&small)), (8, 0));
        assert_eq!(charge.grow(92), Ok(()));
        assert_eq!((charge.change_to(3), used(&large)), (Ok(()), 3));
        assert_eq!((charge.change_to(101), used(&large)), (Err(Full), 3));
        assert_eq!((charge.change_to(100), used(&large)), (Ok(()), 100));
        assert_eq!(charge.grow(usize::MAX), Err(Full));
        drop(charge);
        assert_eq!((used(&large), used(&small)), (0, 0));
    }
}
