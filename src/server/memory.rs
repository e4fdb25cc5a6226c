//! Limits on the memory of bodies and of what is made from them.
//!
//! Each byte is charged to the route once it has arrived. The bytes of senders who are not known yet are also charged
//! to the strangers, who have less: whatever they send, there is room for the known. Among strangers, bodies that began
//! first make room for later ones, so that those that hang, however many, keep nobody out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::connections::Busy;
use crate::inflate::NoRoom;

/// The memory of a route beyond its bodies. The events of a body can take more than the body, and if there were no room
/// for them even alone, there never would be.
const BESIDE_BODIES: usize = 4 << 20;

/// The least memory for the bodies of a route, for the same reason.
const MIN_OF_ROUTE: usize = 8 << 20;

/// The bytes that the bodies of a route may take together, with what is made from them.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Semaphore>);

/// The bytes that the bodies of all unknown senders may take together.
#[derive(Clone, Debug)]
pub(super) struct Strangers(Arc<Mutex<Bodies>>);

#[derive(Debug)]
struct Bodies {
    room: usize,
    began: u64,
    /// The bodies, in the order in which they began.
    bodies: BTreeMap<u64, StrangersBody>,
}

#[derive(Debug)]
struct StrangersBody {
    bytes: usize,
    /// Cancelled to make the body give way; `None` while it cannot.
    gives_way: Option<CancellationToken>,
}

/// The memory of one body, which is given back on drop.
#[derive(Debug)]
pub(super) struct Charge {
    route: OwnedSemaphorePermit,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    Stranger {
        strangers: Strangers,
        began: u64,
        gives_way: CancellationToken,
    },
    /// The connection is kept until the request is answered.
    Known {
        _busy: Busy,
    },
}

impl Memory {
    /// Creates the memory of a route whose bodies may have `max_body` bytes.
    pub(super) fn of_route(max_body: usize) -> Self {
        Self::new(Self::bytes_of_route(max_body))
    }

    /// Returns the size of that memory.
    pub(super) fn bytes_of_route(max_body: usize) -> usize {
        (2 * max_body + BESIDE_BODIES).max(MIN_OF_ROUTE)
    }

    fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, NoRoom> {
        let bytes = u32::try_from(bytes).map_err(|_| NoRoom)?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).map_err(|_| NoRoom)
    }
}

impl Strangers {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(Bodies { room: bytes, began: 0, bodies: BTreeMap::new() })))
    }

    fn begin_body(&self) -> Sender {
        let gives_way = CancellationToken::new();
        let mut strangers = self.lock();
        strangers.began += 1;
        let began = strangers.began;
        strangers.bodies.insert(began, StrangersBody { bytes: 0, gives_way: Some(gives_way.clone()) });
        Sender::Stranger { strangers: self.clone(), began, gives_way }
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.0.lock().expect("no panic while it is held")
    }
}

impl Bodies {
    /// Takes more for the body that began as number `began`. Bodies that began before it make room for it.
    fn grow(&mut self, began: u64, bytes: usize) -> Result<(), NoRoom> {
        while self.room < bytes {
            let first = self.bodies.iter().find(|(_, body)| body.gives_way.is_some());
            let first = first.map(|(first, _)| *first).filter(|first| *first != began).ok_or(NoRoom)?;
            self.remove(first);
        }
        self.bodies.get_mut(&began).ok_or(NoRoom)?.bytes += bytes;
        self.room -= bytes;
        Ok(())
    }

    fn remove(&mut self, began: u64) {
        if let Some(StrangersBody { bytes, gives_way }) = self.bodies.remove(&began) {
            self.room += bytes;
            if let Some(gives_way) = gives_way {
                gives_way.cancel();
            }
        }
    }
}

impl Charge {
    /// Creates an empty charge, which grows within the memory of a route and that of strangers.
    pub(super) fn of_stranger(route: &Memory, strangers: &Strangers) -> Self {
        Self::new(route, strangers.begin_body())
    }

    /// Creates an empty charge, which grows within the memory of a route. The connection is kept until the request is
    /// answered.
    pub(super) fn of_known(route: &Memory, busy: Busy) -> Self {
        Self::new(route, Sender::Known { _busy: busy })
    }

    fn new(route: &Memory, sender: Sender) -> Self {
        Self { route: route.take(0).expect("there is always room for nothing"), sender }
    }

    /// Takes more memory.
    ///
    /// # Errors
    /// When there is no room for that, and nothing is taken.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let more = Memory(Arc::clone(self.route.semaphore())).take(bytes)?;
        if let Sender::Stranger { strangers, began, .. } = &self.sender {
            strangers.lock().grow(*began, bytes)?;
        }
        self.route.merge(more);
        Ok(())
    }

    /// The bytes so far.
    pub(super) fn bytes(&self) -> usize {
        self.route.num_permits()
    }

    /// Gives back whatever is over `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        drop(self.route.split(self.bytes().saturating_sub(bytes)));
    }

    /// Notes that the sender is proven: its body is no longer a stranger's, and its connection is kept until the
    /// request is answered.
    pub(super) fn prove(&mut self, busy: Busy) {
        self.sender = Sender::Known { _busy: busy };
    }

    /// Keeps the body from giving way to others from now on, because it is in use.
    pub(super) fn stay(&self) {
        if let Sender::Stranger { strangers, began, .. } = &self.sender
            && let Some(body) = strangers.lock().bodies.get_mut(began)
        {
            body.gives_way = None;
        }
    }

    /// Waits until the body has to give way to others.
    pub(super) async fn given_way(&self) {
        match &self.sender {
            Sender::Stranger { gives_way, .. } => gives_way.cancelled().await,
            Sender::Known { .. } => std::future::pending().await,
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Self::Stranger { strangers, began, .. } = self {
            strangers.lock().remove(*began);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connections::{Seat, Seats};

    fn room(memory: &Memory) -> usize {
        memory.0.available_permits()
    }

    #[test]
    fn a_charge_takes_from_both_memories_or_from_none_and_gives_all_back() {
        let (route, strangers) = (Memory::new(100), Strangers::new(10));
        let rooms = || (room(&route), strangers.lock().room);
        let mut charge = Charge::of_stranger(&route, &strangers);
        assert_eq!(charge.grow(8), Ok(()));
        assert_eq!(charge.grow(3), Err(NoRoom));
        assert_eq!(rooms(), (92, 2));
        charge.prove(Seat::new("127.0.0.1:1".parse().unwrap(), &Arc::<Seats>::default()).keep().unwrap());
        assert_eq!(rooms(), (92, 10));
        assert_eq!(charge.grow(92), Ok(()));
        assert_eq!(charge.grow(1), Err(NoRoom));
        charge.shrink_to(3);
        charge.shrink_to(4);
        assert_eq!(rooms(), (97, 10));
        assert_eq!(charge.grow(usize::MAX), Err(NoRoom));
        drop(charge);
        assert_eq!(rooms(), (100, 10));
    }

    #[test]
    fn of_strangers_bodies_the_one_that_began_first_makes_room() {
        let (route, strangers) = (Memory::new(100), Strangers::new(10));
        let began = || Charge::of_stranger(&route, &strangers);
        let gives_way = |charge: &Charge| match &charge.sender {
            Sender::Stranger { gives_way, .. } => gives_way.is_cancelled(),
            Sender::Known { .. } => unreachable!(),
        };
        let [mut first, mut second, mut third, mut fourth] = [began(), began(), began(), began()];
        assert_eq!([first.grow(4), second.grow(4), third.grow(5)], [Ok(()); 3]);
        assert_eq!([&first, &second, &third].map(gives_way), [true, false, false]);
        assert_eq!(first.grow(1), Err(NoRoom), "it has given way");
        // A body in use stays.
        second.stay();
        assert_eq!(fourth.grow(2), Ok(()));
        assert_eq!([&second, &third].map(gives_way), [false, true]);
        assert_eq!(fourth.grow(5), Err(NoRoom), "one does not make room for itself");
        assert_eq!(fourth.grow(4), Ok(()));
        drop([second, fourth, first, third]);
        assert_eq!((room(&route), strangers.lock().room), (100, 10));
    }
}
