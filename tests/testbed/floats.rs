//! What most tests promote on quaylike, and the requests for it.

use quaylike::{Image, ImageSpec, Matcher, Options, RequestKind, Settings, Shape};

/// The repository of the floats.
pub const FLOATS: &str = "ci";

/// A registry that says what dangles after every write.
pub fn audited() -> Options {
    Options::default().settings(Settings {
        audit: true,
        ..Settings::default()
    })
}

/// An image that differs from those of other seeds.
pub fn image(seed: &str) -> Image {
    ImageSpec::new(Shape::Oci, seed).build().unwrap()
}

/// Reads of a tag of the floats' repository.
pub fn look(tag: &str) -> Matcher {
    let matcher = Matcher::kind(RequestKind::Manifest).method("GET");
    matcher.repository(FLOATS).reference(tag)
}

/// Writes of it.
pub fn put(tag: &str) -> Matcher {
    Matcher::put_manifest().repository(FLOATS).reference(tag)
}

/// Writes of tags that end so.
pub fn put_suffix(suffix: &str) -> Matcher {
    let matcher = Matcher::put_manifest();
    matcher.repository(FLOATS).reference_suffix(suffix)
}
