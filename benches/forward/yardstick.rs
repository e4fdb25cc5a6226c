//! The yardstick: a bare `reqwest` loop that posts a ready body, 64 at once. It parses nothing and receives nothing.

use anyhow::ensure;
use bytes::Bytes;

use crate::shared::events;

const CONCURRENCY: usize = 64;

pub fn run(receiver: &str, events: usize) -> anyhow::Result<()> {
    // With its default features off, reqwest has no provider of its own.
    drop(rustls::crypto::ring::default_provider().install_default());
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url: reqwest::Url = format!("http://{receiver}/hooks/posthog").parse()?;
        let body = Bytes::from(events::message());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..CONCURRENCY {
            let (client, url, body) = (client.clone(), url.clone(), body.clone());
            let share = events / CONCURRENCY + usize::from(task < events % CONCURRENCY);
            tasks.spawn(async move {
                for _ in 0..share {
                    let request = client.post(url.clone()).header("authorization", "Bearer credential");
                    let request = request.header("content-type", "application/json").body(body.clone());
                    let reply = request.send().await?;
                    ensure!(reply.status().is_success());
                    reply.bytes().await?;
                }
                Ok(())
            });
        }
        while let Some(result) = tasks.join_next().await {
            result??;
        }
        Ok(())
    })
}
