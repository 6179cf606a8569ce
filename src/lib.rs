//! Promotes container images to floating tags without ever leaving one dangling.

pub mod api;
pub mod cli;
pub mod controller;
#[cfg(feature = "embedded-registry")]
pub mod embedded;
pub mod engine;
pub mod image;
pub mod machine;
pub mod policy;
pub mod registry;
pub mod store;
