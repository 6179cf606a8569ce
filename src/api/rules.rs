//! What the schema's attributes name: patterns, messages and the rules on changes.
//!
//! The rules are CEL. Their patterns follow the grammar that [`crate::image`] parses; a name that gets past them and is still
//! none (a port of 70000, say) ends the request as `InvalidSpec`.

use kube::core::{Reason, Rule};
use schemars::{Schema, SchemaGenerator, json_schema};

/// `HOST[:PORT]/REPOSITORY`, as the start of a pattern; a macro, for `concat!`.
macro_rules! repository {
    () => {
        "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+"
    };
}

/// What a source looks like.
pub(super) const SOURCE: &str = concat!(
    "self.matches('",
    repository!(),
    "(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}(@sha256:[a-f0-9]{64})?|@sha256:[a-f0-9]{64})$')"
);
pub(super) const SOURCE_MESSAGE: &str = "must be HOST[:PORT]/REPOSITORY@sha256:DIGEST or HOST[:PORT]/REPOSITORY:TAG (with both, \
    the digest counts), written in full and without a scheme: there is no default host and no default tag";

/// What a float looks like. Its longest pin's name is 30 characters longer and must fit the 128 of a tag.
pub(super) const FLOAT: &str = concat!(
    "self.matches('",
    repository!(),
    ":[a-zA-Z0-9_][a-zA-Z0-9._-]{0,97}$')"
);
pub(super) const FLOAT_MESSAGE: &str = "must be HOST[:PORT]/REPOSITORY:TAG without a digest, the tag at most 98 characters, \
    so that the names of its pins fit 128; write the host in full, or shorten the tag";

/// Tags that pin a float's past, and those of release payloads.
pub(super) const FLOAT_NOT_RESERVED: &str = "!self.matches(':([0-9]{14}_prune_|rc_payload__|preserved__rc_payload__|remove__rc_payload__|art__)[a-zA-Z0-9._-]*$')";
pub(super) const FLOAT_NOT_RESERVED_MESSAGE: &str =
    "this tag is reserved for pins and release payloads; choose another tag";

/// Tags that a promotion makes beside its float.
pub(super) const FLOAT_NOT_DERIVED: &str =
    "!self.matches('(_incoming|__pre|__post1|__rescued|__broken)$')";
pub(super) const FLOAT_NOT_DERIVED_MESSAGE: &str = "a float cannot end in _incoming, __pre, __post1, __rescued or __broken, which promotions make themselves; choose another tag";

/// What a float may have to be on.
pub(super) const REPLACES: &str = "self.matches('^(None|sha256:[a-f0-9]{64})$')";
pub(super) const REPLACES_MESSAGE: &str =
    "must be sha256:DIGEST, or None for a tag that does not exist yet";

/// What a tag of an image stream looks like.
pub(super) const STREAM_TAG: &str =
    "self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?:[a-zA-Z0-9_][a-zA-Z0-9_.-]*$')";
pub(super) const STREAM_TAG_MESSAGE: &str =
    "must be STREAM:TAG, the stream in lower-case letters, digits, '-' and '.'";

/// Whose tags they are.
pub(super) const STREAM_NAMESPACE: &str =
    "has(self.imageStreamNamespace) == self.images.exists(i, has(i.imageStreamTag))";
pub(super) const STREAM_NAMESPACE_MESSAGE: &str =
    "imageStreamTag and imageStreamNamespace need each other; set both, or neither";

/// What a gate may be called.
pub(super) const GATE: &str = "self.matches('^[a-zA-Z0-9]([a-zA-Z0-9./-]*[a-zA-Z0-9])?$')";
pub(super) const GATE_MESSAGE: &str =
    "must be letters, digits, '-', '.' and '/', with a letter or digit at both ends";

/// What a prune tag looks like, of whatever float.
pub(super) const PRUNE_TAG: &str = "^[0-9]{14}_prune_[a-zA-Z0-9._-]+$";

const IMMUTABLE: &str = "only suspend, cancel and ttlSecondsAfterFinished may change, and gates be removed; \
    create another request instead";

/// A rule on the change of a field; its refusal names the field but does not print its value.
pub(super) fn forbidden(rule: &str, message: &str) -> Rule {
    Rule::new(rule)
        .message(message)
        .reason(Reason::FieldValueForbidden)
}

/// For a field that is always there: it stays as it was created.
pub(super) fn unchanging() -> Rule {
    forbidden("self == oldSelf", IMMUTABLE)
}

/// For the images: to CEL, lists with a key are equal in any order, but status speaks of images by their place.
pub(super) fn unchanging_in_order() -> Rule {
    let rule = "self == oldSelf && self.map(i, i.float) == oldSelf.map(i, i.float)";
    forbidden(rule, IMMUTABLE)
}

/// For a field that can be absent, from its parent: it neither comes, goes nor changes.
pub(super) fn unchanged(field: &str) -> Rule {
    let old = field.replacen("self", "oldSelf", 1);
    let rule = format!("has({field}) == has({old}) && (!has({field}) || {field} == {old})");
    forbidden(&rule, IMMUTABLE)
}

/// For a list by a key that can be absent, from its parent: entries go and never come.
pub(super) fn only_removed(field: &str, key: &str) -> Rule {
    let old = field.replacen("self", "oldSelf", 1);
    let known = format!("{old}.exists(o, o.{key} == e.{key})");
    let rule = format!("!has({field}) || (has({old}) && {field}.all(e, {known}))");
    forbidden(&rule, IMMUTABLE)
}

/// The conditions: those of the Kubernetes API conventions, with bounds.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 10,
        "items": {
            "description": "One aspect of the request.",
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {
                    "description": "What the condition is about.",
                    "type": "string",
                    "maxLength": 64,
                },
                "status": {
                    "description": "Whether it holds.",
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                },
                "reason": {
                    "description": "Why, in one word of a closed set.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 64,
                },
                "message": {
                    "description": "The same, for people.",
                    "type": "string",
                    "maxLength": 1024,
                },
                "lastTransitionTime": {
                    "description": "When the status last changed.",
                    "type": "string",
                    "format": "date-time",
                },
                "observedGeneration": {
                    "description": "The generation of the spec that the condition is about.",
                    "type": "integer",
                    "format": "int64",
                },
            },
        },
    })
}
