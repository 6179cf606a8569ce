//! What the documents, the Dockerfile and the modules say of each other. Needs nothing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test that meets an error has failed, and tables are long"
)]

mod architecture;
mod docs;
mod image;
