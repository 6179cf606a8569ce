//! The documents of a YAML file: a path comes in, valid requests in their order come out, or the first fault with its field and
//! what to do about it.

use std::io::ErrorKind;
use std::path::Path;

use super::error::FileError;
use crate::api::PromotionRequest;
use crate::api::status::read;
use crate::files;
use crate::image::Float;
use crate::store::Key;

/// The largest file that is read, in bytes: more than a thousand full-sized requests are not one promotion.
const FILE_MAX: usize = 64 * 1024 * 1024;
/// How many nodes its aliases may expand to: a few lines of them can expand to millions.
const ALIASED_MAX: usize = 20_000;

/// A request as it was written, and as it is read.
#[derive(Debug, Clone)]
pub struct Document {
    /// All that is written, and only that.
    pub written: serde_json::Value,
    /// The object.
    pub object: PromotionRequest,
}

/// The requests of a YAML file, each with what is written of it.
///
/// # Errors
/// As [`read_requests`].
pub fn read_documents(path: &Path) -> Result<Vec<Document>, FileError> {
    let text = read_text(path, "name a readable file")?;
    parse_documents(&text, path)
}

/// The requests of a YAML file, every one of them valid; whether each may begin now, [`check_floats`] says.
///
/// # Errors
/// The first invalid document, with its field and what to do.
pub fn read_requests(path: &Path) -> Result<Vec<PromotionRequest>, FileError> {
    let text = read_text(path, "name a readable file")?;
    parse_requests(&text, path)
}

/// The requests of a YAML text, every one of them valid; `path` is how errors name it.
///
/// # Errors
/// As [`read_requests`].
pub fn parse_requests(text: &str, path: &Path) -> Result<Vec<PromotionRequest>, FileError> {
    let documents = parse_documents(text, path)?.into_iter();
    Ok(documents.map(|document| document.object).collect())
}

fn parse_documents(text: &str, path: &Path) -> Result<Vec<Document>, FileError> {
    let parse = |message: String| FileError::Parse {
        path: path.into(),
        message,
    };
    let options = serde_saphyr::options! {
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: ALIASED_MAX },
    };
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| parse(format!("is not YAML: {error}; correct it")))?;
    if documents.is_empty() {
        return Err(parse(
            "holds no document; write at least one PromotionRequest".into(),
        ));
    }
    let mut read: Vec<Document> = Vec::with_capacity(documents.len());
    for (index, written) in documents.into_iter().enumerate() {
        let name = text_at(&written, "/metadata/name");
        let refused = |message| FileError::Document {
            path: path.into(),
            number: index + 1,
            name: (!name.is_empty()).then(|| name.clone()),
            message,
        };
        let object = read_document(written.clone()).map_err(refused)?;
        let key = Key::from(&object);
        if read.iter().any(|before| Key::from(&before.object) == key) {
            return Err(refused(
                "metadata.name: another document has this name; name each once".into(),
            ));
        }
        read.push(Document { written, object });
    }
    Ok(read)
}

/// That requests which begin now name no float that only an earlier version admitted.
///
/// # Errors
/// The first such float, and what to do.
pub fn check_floats<'a>(
    objects: impl IntoIterator<Item = (usize, &'a PromotionRequest)>,
) -> Result<(), FileError> {
    for (number, object) in objects {
        for (index, image) in object.spec.images.iter().enumerate() {
            Float::new(&image.float).map_err(|error| FileError::Float {
                number: number + 1,
                request: Key::from(object),
                index,
                error,
            })?;
        }
    }
    Ok(())
}

/// The text of a file of a size that may be held.
pub(super) fn read_text(path: &Path, remedy: &'static str) -> Result<String, FileError> {
    let io = |source| FileError::Io {
        verb: "read",
        path: path.into(),
        source,
        remedy,
    };
    let bytes = files::read_or_stdin(path, FILE_MAX).map_err(|error| match error.kind() {
        ErrorKind::FileTooLarge => FileError::Parse {
            path: path.into(),
            message: format!("is larger than {} MiB; split it", FILE_MAX >> 20),
        },
        _ => io(error),
    })?;
    let invalid = |error| io(std::io::Error::new(ErrorKind::InvalidData, error));
    String::from_utf8(bytes).map_err(invalid)
}

fn text_at(document: &serde_json::Value, pointer: &str) -> String {
    let value = document.pointer(pointer).and_then(|v| v.as_str());
    value.unwrap_or_default().to_owned()
}

fn read_document(mut document: serde_json::Value) -> Result<PromotionRequest, String> {
    let (version, kind) = (
        text_at(&document, "/apiVersion"),
        text_at(&document, "/kind"),
    );
    if version != "ci.openshift.io/v1alpha1" || kind != "PromotionRequest" {
        return Err(format!(
            "apiVersion, kind: are '{version}', '{kind}'; write ci.openshift.io/v1alpha1, PromotionRequest"
        ));
    }
    check_name(
        &document,
        "name",
        253,
        "is missing; the state is kept under it",
    )?;
    if document.pointer("/metadata/namespace").is_some() {
        check_name(&document, "namespace", 63, "is empty; leave it out")?;
    }
    if let Some(fields) = document.as_object_mut() {
        // What a cluster knows of it is not what this file's state knows; the first two are checked.
        for field in ["apiVersion", "kind", "status"] {
            fields.remove(field);
        }
    }
    let mut unknown = None;
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(document, &mut track);
    let object: Result<PromotionRequest, _> = serde_ignored::deserialize(tracked, |path| {
        unknown = unknown.take().or(Some(path.to_string()));
    });
    let object = object.map_err(|error| {
        format!(
            "{}: {error}; correct it, see 'promotion-controller crd'",
            track.path()
        )
    })?;
    if let Some(field) = unknown {
        return Err(format!(
            "{field}: there is no such field; correct its name or remove it, see 'promotion-controller crd'"
        ));
    }
    check_bounds(&object)?;
    read(&object).map_err(|error| error.to_string())?;
    Ok(object)
}

/// Names as an API server takes them; a slash in one would make it another object's.
fn check_name(
    document: &serde_json::Value,
    field: &str,
    longest: usize,
    missing: &str,
) -> Result<(), String> {
    let name = match document.pointer(&format!("/metadata/{field}")) {
        Some(serde_json::Value::String(name)) if !name.is_empty() => name,
        Some(serde_json::Value::String(_) | serde_json::Value::Null) | None => {
            return Err(format!("metadata.{field}: {missing}"));
        }
        Some(other) => {
            return Err(format!(
                "metadata.{field}: {other} is not a string; quote it"
            ));
        }
    };
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fits = name.len() <= longest
        && name.chars().all(inner)
        && edge(name.chars().next())
        && edge(name.chars().last());
    if fits {
        return Ok(());
    }
    let shown: String = name.chars().take(longest).collect();
    Err(format!(
        "metadata.{field}: '{}' is not a valid name; use at most {longest} of a-z, 0-9, - and ., with a letter or digit at both ends",
        shown.escape_debug()
    ))
}

/// The bounds that an API server would enforce.
fn check_bounds(object: &PromotionRequest) -> Result<(), String> {
    let spec = &object.spec;
    if spec.images.len() > 256 {
        return Err(format!(
            "spec.images: has {} entries; at most 256 are allowed, make it several requests",
            spec.images.len()
        ));
    }
    let bounds = [
        ("attempts", spec.attempts, 1, 20),
        ("deadlineSeconds", spec.deadline_seconds, 60, 86_400),
        (
            "ttlSecondsAfterFinished",
            spec.ttl_seconds_after_finished,
            0,
            7_776_000,
        ),
    ];
    for (field, value, least, most) in bounds {
        if value < least || value > most {
            return Err(format!(
                "spec.{field}: is {value}; it must be {least} to {most}"
            ));
        }
    }
    Ok(())
}
