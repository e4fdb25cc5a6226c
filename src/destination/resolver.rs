//! Look-ups of names: one at a time for each name, whose addresses outlive a later one that fails.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use reqwest::dns::{Name, Resolve, Resolving};
use tokio::{
    net::lookup_host,
    sync::SetOnce,
    time::{Instant, timeout},
};

/// How long addresses count as just looked up. A look-up that takes longer than an attempt serves the attempts after it.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// How long a look-up may take before the addresses of an earlier one are used.
const EARLIER_AFTER: Duration = Duration::from_secs(1);

/// The name has no address, or nobody could say.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the look-up of the name failed")]
pub(super) struct LookUpFailed(#[source] Arc<io::Error>);

type Addresses = Arc<[SocketAddr]>;
type Answer = Result<Addresses, LookUpFailed>;

/// The look-ups of all names.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolver(Arc<Mutex<HashMap<String, Known>>>);

/// What is known of a name.
#[derive(Debug, Default)]
struct Known {
    addresses: Option<(Instant, Addresses)>,
    under_way: Option<Arc<SetOnce<Answer>>>,
}

tokio::task_local! {
    static WAIT: Cell<Wait>;
}

/// How long an attempt has waited for a look-up.
#[derive(Clone, Copy)]
enum Wait {
    Over(Duration),
    Since(Instant),
}

/// Awaits `attempt`, and returns how long it waited for look-ups beside what came of it.
pub(super) async fn timed<T>(attempt: impl Future<Output = T>) -> (T, Duration) {
    let timed = async {
        let result = attempt.await;
        let wait = match WAIT.with(Cell::get) {
            Wait::Over(wait) => wait,
            Wait::Since(start) => start.elapsed(),
        };
        (result, wait)
    };
    WAIT.scope(Cell::new(Wait::Over(Duration::ZERO)), timed).await
}

impl Resolver {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().expect("no panic while it is held")
    }

    async fn look_up(self, name: String) -> Answer {
        let (earlier, under_way) = {
            let mut known = self.known();
            let known = known.entry(name.clone()).or_default();
            let earlier = match &known.addresses {
                Some((at, addresses)) if at.elapsed() < FRESH_FOR => return Ok(Arc::clone(addresses)),
                Some((_, addresses)) => Some(Arc::clone(addresses)),
                None => None,
            };
            let under_way = known.under_way.get_or_insert_with(|| self.begin(name));
            (earlier, Arc::clone(under_way))
        };
        match earlier {
            None => under_way.wait().await.clone(),
            Some(earlier) => match timeout(EARLIER_AFTER, under_way.wait()).await {
                Ok(Ok(addresses)) => Ok(Arc::clone(addresses)),
                Ok(Err(_)) | Err(_) => Ok(earlier),
            },
        }
    }

    /// Begins a look-up, which goes on even if nobody waits for it any more.
    fn begin(&self, name: String) -> Arc<SetOnce<Answer>> {
        let (resolver, under_way) = (self.clone(), Arc::new(SetOnce::new()));
        let answer = Arc::clone(&under_way);
        tokio::spawn(async move {
            let result = match lookup_host((name.as_str(), 0)).await {
                Ok(addresses) => Ok(Addresses::from_iter(addresses)),
                Err(error) => Err(LookUpFailed(Arc::new(error))),
            };
            let mut known = resolver.known();
            let known = known.entry(name).or_default();
            known.under_way = None;
            if let Ok(addresses) = &result {
                known.addresses = Some((Instant::now(), Arc::clone(addresses)));
            }
            answer.set(result).expect("it is set here alone");
        });
        under_way
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, name) = (self.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let start = Instant::now();
            // A connection that nobody waits for any more belongs to no attempt.
            WAIT.try_with(|wait| wait.set(Wait::Since(start))).unwrap_or(());
            let answer = resolver.look_up(name).await;
            WAIT.try_with(|wait| wait.set(Wait::Over(start.elapsed()))).unwrap_or(());
            let addresses: Box<dyn Iterator<Item = SocketAddr> + Send> = Box::new(Vec::from(&*answer?).into_iter());
            Ok(addresses)
        })
    }
}
