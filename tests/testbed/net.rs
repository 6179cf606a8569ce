//! Ports, HTTP clients and waiting, as all parts of the testbed need them.
//!
//! Leaves: ports on 127.0.0.1 that were free a moment ago. Another process may take one before its part does;
//! parts that then end at once are started again on other ports by their owner.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::{Error, Supervised};

/// Between two looks at something that is waited for.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// A free port below those the kernel gives to outgoing connections (32768 and up on Linux), so that no
/// connection of another test takes it while a part that keeps its port is being restarted.
pub fn free_port() -> Result<u16, Error> {
    for _ in 0..100 {
        let port = rand::random_range(15_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::Timeout {
        what: "a free port on 127.0.0.1".to_owned(),
        waited: Duration::ZERO,
    })
}

/// Installs rustls' one provider; each test may do so again, and whichever comes first does it.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Every HTTP client of the tests begins here: without a provider, building one panics.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn http_builder() -> reqwest::ClientBuilder {
    install_tls();
    reqwest::Client::builder().no_proxy()
}

/// A client that keeps no connection, so that it may be used under one test's runtime after another's.
pub(super) fn http_client() -> Result<reqwest::Client, Error> {
    Ok(http_client_builder().build()?)
}

/// As [`http_client`], trusting `ca` (DER) alone.
pub(super) fn https_client(ca: &[u8]) -> Result<reqwest::Client, Error> {
    let ca = reqwest::Certificate::from_der(ca)?;
    Ok(http_client_builder().tls_certs_only([ca]).build()?)
}

fn http_client_builder() -> reqwest::ClientBuilder {
    http_builder()
        .pool_max_idle_per_host(0)
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_mins(1))
}

/// Waits until `request` is answered with one of `wanted`; ends early when `part` ended.
pub(super) async fn wait_ready(
    part: &parking_lot::Mutex<Supervised>,
    request: reqwest::RequestBuilder,
    wanted: &[u16],
    patience: Duration,
) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let attempt = request
            .try_clone()
            .ok_or_else(|| Error::Cluster {
                what: "readiness request",
                reason: "has a body that cannot be sent twice".to_owned(),
            })?
            .timeout(Duration::from_secs(5))
            .send()
            .await;
        locked(part).still_running()?;
        let last = match attempt {
            Ok(answer) if wanted.contains(&answer.status().as_u16()) => return Ok(()),
            Ok(answer) => format!("status {}", answer.status()),
            Err(error) => error.to_string(),
        };
        if began.elapsed() > patience {
            return Err(locked(part).not_ready(patience, last));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The lock's content also after a test panicked while it held the lock.
pub(super) fn locked<T>(mutex: &parking_lot::Mutex<T>) -> parking_lot::MutexGuard<'_, T> {
    mutex.lock()
}
