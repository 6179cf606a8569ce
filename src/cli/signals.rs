//! How a person or a cluster ends a command.

use std::time::Duration;

use super::output::say;

/// Signals within this time are one: some programs send each twice, to a process and to its group.
const REPEATED: Duration = Duration::from_secs(1);

/// Resolves at the first SIGTERM or SIGINT; a second one, later than [`REPEATED`], ends the process.
pub(super) async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    let mut next = async move || {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    let repeated = tokio::time::Instant::now() + REPEATED;
    tokio::spawn(async move {
        loop {
            next().await;
            if tokio::time::Instant::now() >= repeated {
                break;
            }
        }
        say("ended at once; what was in flight is taken up by the next run");
        std::process::exit(1);
    });
}
