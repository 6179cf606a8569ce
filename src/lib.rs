//! Promotes container images to floating tags without ever leaving one dangling.

pub mod api;
pub mod engine;
pub mod image;
pub mod machine;
pub mod policy;
pub mod registry;
pub mod store;
