//! The documents of a file once their sources are staged: as they were written, but for the sources and the Secret that read them.

use serde_json::Value;

use super::images::Digests;
use crate::image::{Float, Source};
use crate::store::file::Document;

/// The documents, each source named by digest in its float's repository. What is staged is read with the credential that pushes, so
/// `pullSecret` is left out: it is that of another registry.
pub(super) fn staged(documents: Vec<Document>, digests: &Digests) -> Vec<Value> {
    let documents = documents.into_iter();
    documents.map(|document| one(document, digests)).collect()
}

fn one(document: Document, digests: &Digests) -> Value {
    let mut written = document.written;
    if let Some(fields) = written.as_object_mut() {
        fields.remove("status");
    }
    if let Some(spec) = written.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("pullSecret");
    }
    let images = written.pointer_mut("/spec/images");
    let images = images.and_then(Value::as_array_mut).into_iter().flatten();
    for (image, named) in images.zip(&document.object.spec.images) {
        let names = (named.source.parse::<Source>(), named.float.parse::<Float>());
        if let (Ok(source), Ok(float)) = names
            && let Some(digest) = digests.get(&source)
        {
            image["source"] = format!("{}@{digest}", float.repository()).into();
        }
    }
    written
}
