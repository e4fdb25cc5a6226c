//! Look-ups of names: one at a time for each name. Its addresses outlive a later look-up that fails.

use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use reqwest::dns::{Name, Resolve, Resolving};
use tokio::{
    net::lookup_host,
    sync::SetOnce,
    time::{Instant, timeout},
};

/// The time for which addresses count as just looked up. A look-up that takes longer than an attempt serves the next attempts.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// The time after which the addresses of an earlier look-up are used instead.
const EARLIER_AFTER: Duration = Duration::from_secs(1);

/// The error of a name that has no address, or whose address could not be looked up.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the look-up of the name failed")]
pub(super) struct LookUpFailed(#[source] Arc<io::Error>);

type Addresses = Arc<[SocketAddr]>;
type Answer = Result<Addresses, LookUpFailed>;

/// A function that looks up the addresses of a name.
type Ask = dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync;

/// The look-ups of all names.
#[derive(Clone)]
pub(super) struct Resolver {
    ask: Arc<Ask>,
    known: Arc<Mutex<HashMap<String, Known>>>,
}

/// The look-up of a name, and its earlier addresses.
#[derive(Debug, Default)]
struct Known {
    addresses: Option<(Instant, Addresses)>,
    under_way: Option<Arc<SetOnce<Answer>>>,
}

tokio::task_local! {
    static WAIT: Cell<Wait>;
}

/// The time that an attempt has waited for a look-up.
#[derive(Clone, Copy)]
enum Wait {
    Over(Duration),
    Since(Instant),
}

/// Awaits `attempt`, and returns its result with the time that it waited for look-ups.
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

impl Default for Resolver {
    /// Creates a resolver that asks the system.
    fn default() -> Self {
        Self::asking(|name| Box::pin(async move { Ok(lookup_host((name, 0)).await?.collect()) }))
    }
}

impl Resolver {
    fn asking(
        ask: impl Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> + Send + Sync + 'static,
    ) -> Self {
        Self { ask: Arc::new(ask), known: Arc::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().expect("no panic while it is held")
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

    /// Begins a look-up, which goes on even if nobody waits for it any longer.
    fn begin(&self, name: String) -> Arc<SetOnce<Answer>> {
        let (resolver, under_way) = (self.clone(), Arc::new(SetOnce::new()));
        let answer = Arc::clone(&under_way);
        tokio::spawn(async move {
            let result = match (resolver.ask)(name.clone()).await {
                Ok(addresses) => Ok(Addresses::from(addresses)),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    const ADDRESS: ([u8; 4], u16) = ([192, 0, 2, 1], 0);

    /// A resolver whose n-th look-up does what `script` says, and the number of look-ups.
    fn scripted<F>(script: impl Fn(usize) -> F + Send + Sync + 'static) -> (Resolver, Arc<AtomicUsize>)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        (Resolver::asking(move |_| Box::pin(script(counted.fetch_add(1, Ordering::SeqCst)))), count)
    }

    async fn look_up(resolver: &Resolver) -> Option<Vec<SocketAddr>> {
        resolver.clone().look_up("variance.example".to_owned()).await.ok().map(|addresses| addresses.to_vec())
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_fails_leaves_the_earlier_addresses_in_use() {
        let (resolver, count) = scripted(|n| async move {
            match n {
                1 => Ok(vec![ADDRESS.into()]),
                _ => Err(io::Error::other("no name server")),
            }
        });
        assert_eq!(look_up(&resolver).await, None, "there are no earlier ones");
        for _ in 0..3 {
            assert_eq!(look_up(&resolver).await, Some(vec![ADDRESS.into()]));
            tokio::time::advance(FRESH_FOR).await;
        }
        assert_eq!(count.load(Ordering::SeqCst), 4, "it is asked again and again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_look_up_leaves_the_earlier_addresses_in_use_and_its_own_come_later() {
        let newer = SocketAddr::from(([192, 0, 2, 2], 0));
        let (resolver, _) = scripted(move |n| async move {
            if n == 1 {
                tokio::time::sleep(EARLIER_AFTER * 3).await;
            }
            Ok(vec![if n == 0 { ADDRESS.into() } else { newer }])
        });
        assert_eq!(look_up(&resolver).await, Some(vec![ADDRESS.into()]));
        tokio::time::advance(FRESH_FOR).await;
        let start = Instant::now();
        assert_eq!(look_up(&resolver).await, Some(vec![ADDRESS.into()]));
        assert_eq!(start.elapsed(), EARLIER_AFTER);
        tokio::time::sleep(EARLIER_AFTER * 3).await;
        assert_eq!(look_up(&resolver).await, Some(vec![newer]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_outlasts_an_attempt_serves_the_attempts_after_it_and_is_what_they_waited_for() {
        let (resolver, count) = scripted(|_| async {
            tokio::time::sleep(Duration::from_secs(8)).await;
            Ok(vec![ADDRESS.into()])
        });
        let attempt = || timed(timeout(Duration::from_secs(5), resolver.resolve("variance.example".parse().unwrap())));
        let (result, wait) = attempt().await;
        assert!(result.is_err() && wait == Duration::from_secs(5), "{wait:?}");
        let (result, wait) = attempt().await;
        assert_eq!(result.unwrap().ok().unwrap().collect::<Vec<_>>(), [ADDRESS.into()]);
        assert_eq!(wait, Duration::from_secs(3));
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn look_ups_at_once_are_one() {
        let go = Arc::new(Notify::new());
        let waits = Arc::clone(&go);
        let (resolver, count) = scripted(move |_| {
            let go = Arc::clone(&waits);
            async move {
                go.notified().await;
                Ok(vec![ADDRESS.into()])
            }
        });
        let all = futures_util::future::join_all((0..100).map(|_| look_up(&resolver)));
        let (answers, ()) = tokio::join!(all, async { go.notify_one() });
        assert!(answers.iter().all(|answer| *answer == Some(vec![ADDRESS.into()])));
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }
}
