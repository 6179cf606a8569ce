//! One call to the API server: given up in time, counted, and its failure reported with its cause.

use std::error::Error;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};

use crate::metrics::{Call, CallResult, Metrics};

/// What `work` comes to within `limit`, its retries included.
pub(crate) async fn call<T>(
    metrics: &Metrics,
    call: Call,
    limit: Duration,
    work: impl Future<Output = kube::Result<T>>,
) -> Result<kube::Result<T>, Elapsed> {
    let sent = Instant::now();
    let answer = timeout(limit, work).await;
    let result = match &answer {
        Ok(Ok(_)) => CallResult::Ok,
        Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.code == 409 => {
            CallResult::Conflict
        }
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() || status.code == 404 => {
            CallResult::Gone
        }
        Ok(Err(kube::Error::Api(_))) => CallResult::Refused,
        Ok(Err(_)) => CallResult::Failed,
        Err(_) => CallResult::Timeout,
    };
    metrics.called(call, result, sent.elapsed());
    answer
}

/// An error with what caused it, each said once. Errors of the client alone do not tell that a certificate is not trusted.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
