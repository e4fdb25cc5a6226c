//! The HTTP face.

use std::{net::SocketAddr, time::Duration};

/// The address, and the limits of a request.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How long a webhook request may take.
    pub webhook_deadline: Duration,
    /// How long a batch request may take.
    pub batch_deadline: Duration,
    /// Bytes of a body, before and after decompression.
    pub max_body: usize,
    /// How long a stopping server may take to finish what it has.
    pub shutdown_grace: Duration,
}
