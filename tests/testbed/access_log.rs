//! The requests a registry answered, read from its access log.
//!
//! Enters: the log file, in Apache's combined format, one line per answered request. Leaves: the requests in
//! the order of their answers. Guaranteed: those the testbed itself makes are left out, so that a count is the
//! count of the code under test.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Error;
use super::net::LOOK;

/// How the testbed's own requests are known in a log.
pub(super) const USER_AGENT: &str = "testbed";

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Without the `?`; empty when there is none.
    pub query: String,
    /// The HTTP status.
    pub status: u16,
    /// The client's `User-Agent`.
    pub user_agent: String,
    /// `HTTP/1.1`, `HTTP/2.0`
    pub protocol: String,
}

impl LoggedRequest {
    /// Whether this is a request of that method to that path.
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path == path
    }

    fn parse(line: &str) -> Option<Self> {
        let mut quoted = line.split('"');
        let mut request = quoted.nth(1)?.split(' ');
        let status = quoted.next()?.split_whitespace().next()?.parse().ok()?;
        let method = request.next()?.to_owned();
        let target = request.next()?;
        let protocol = request.next().unwrap_or_default().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Some(Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            status,
            user_agent: quoted.nth(2).unwrap_or_default().to_owned(),
            protocol,
        })
    }
}

/// The access log of one registry; it goes on over restarts.
#[derive(Debug, Clone)]
pub struct AccessLog {
    path: PathBuf,
}

impl AccessLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The file.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// All requests so far but the testbed's own.
    pub fn requests(&self) -> Result<Vec<LoggedRequest>, Error> {
        let text = std::fs::read(&self.path).map_err(Error::file("read", &self.path))?;
        let text = String::from_utf8_lossy(&text);
        // What follows the last line's end is a line that is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole
            .lines()
            .filter_map(LoggedRequest::parse)
            .filter(|request| request.user_agent != USER_AGENT)
            .collect())
    }

    /// The number of requests so far, to be given to [`Self::since`] and [`Self::wait_for`].
    pub fn mark(&self) -> Result<usize, Error> {
        Ok(self.requests()?.len())
    }

    /// The requests after `mark`.
    pub fn since(&self, mark: usize) -> Result<Vec<LoggedRequest>, Error> {
        Ok(self.requests()?.into_iter().skip(mark).collect())
    }

    /// Waits for a request after `mark` that `wanted` holds for. A line is written when the answer was sent.
    pub async fn wait_for(
        &self,
        mark: usize,
        patience: Duration,
        wanted: impl Fn(&LoggedRequest) -> bool,
    ) -> Result<LoggedRequest, Error> {
        let began = Instant::now();
        loop {
            if let Some(found) = self
                .since(mark)?
                .into_iter()
                .find(|request| wanted(request))
            {
                return Ok(found);
            }
            if began.elapsed() > patience {
                return Err(Error::Timeout {
                    what: format!("a certain request in {}", self.path.display()),
                    waited: patience,
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
