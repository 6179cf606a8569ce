//! Promotes container images to floating tags without ever leaving one dangling.

pub mod api;
pub mod image;
pub mod machine;
