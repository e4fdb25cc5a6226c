//! The memory that bodies may take, and what is made of them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::inflate::NoRoom;

/// The least memory for the bodies of a route. What is made of a body can take more than the body, and if that had no
/// room even by itself, it never would.
const MIN_OF_ROUTE: usize = 8 << 20;

/// Bytes that bodies may take together.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

/// Bytes that one body takes; dropping it gives them back.
#[derive(Debug)]
pub(super) struct Charge {
    route: OwnedSemaphorePermit,
    /// The same bytes again, until it is known who sent them.
    unproven: Option<OwnedSemaphorePermit>,
}

impl Memory {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// What a route needs where a body may have that many bytes.
    pub(super) fn of_route(max_body: usize) -> Self {
        Self::new((2 * max_body).max(MIN_OF_ROUTE))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, NoRoom> {
        let bytes = u32::try_from(bytes).map_err(|_| NoRoom)?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| NoRoom)
    }
}

impl Charge {
    /// Nothing yet, to grow within the memory of a route, and within that of unproven senders.
    pub(super) fn new(route: &Memory, unproven: &Memory) -> Self {
        let nothing = |memory: &Memory| memory.take(0).expect("there is always room for nothing");
        Self { route: nothing(route), unproven: Some(nothing(unproven)) }
    }

    /// Takes more.
    ///
    /// # Errors
    /// When there is no room for that. Nothing is taken then.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let more = |permit: &OwnedSemaphorePermit| Memory(Arc::clone(permit.semaphore())).take(bytes);
        let of_route = more(&self.route)?;
        if let Some(unproven) = &mut self.unproven {
            unproven.merge(more(unproven)?);
        }
        self.route.merge(of_route);
        Ok(())
    }

    /// Takes more or gives some back, so that it is `bytes` in all.
    ///
    /// # Errors
    /// As [`Charge::grow`].
    pub(super) fn change_to(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let Some(less) = self.route.num_permits().checked_sub(bytes) else {
            return self.grow(bytes - self.route.num_permits());
        };
        let given_back = [self.route.split(less), self.unproven.as_mut().and_then(|unproven| unproven.split(less))];
        drop(given_back);
        Ok(())
    }

    /// The sender is proven now: the body no longer counts among those of strangers.
    pub(super) fn prove(&mut self) {
        self.unproven = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_takes_from_both_memories_or_from_none_and_gives_all_back() {
        let (small, large) = (Memory::new(10), Memory::new(100));
        let room = |memory: &Memory| memory.0.available_permits();
        let mut charge = Charge::new(&large, &small);
        assert_eq!(charge.grow(8), Ok(()));
        assert_eq!(charge.grow(3), Err(NoRoom));
        assert_eq!((room(&large), room(&small)), (92, 2));
        charge.prove();
        assert_eq!((room(&large), room(&small)), (92, 10));
        assert_eq!(charge.grow(92), Ok(()));
        assert_eq!((charge.change_to(3), room(&large)), (Ok(()), 97));
        assert_eq!((charge.change_to(101), room(&large)), (Err(NoRoom), 97));
        assert_eq!((charge.change_to(100), room(&large)), (Ok(()), 0));
        assert_eq!(charge.grow(usize::MAX), Err(NoRoom));
        drop(charge);
        assert_eq!((room(&large), room(&small)), (100, 10));
    }
}
