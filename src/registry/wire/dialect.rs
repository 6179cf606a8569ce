//! What registries answer and what it means: a table by kind of request, status, code and words.
//!
//! Pure. A registry that says something differently is one more row. Guaranteed: the first row that fits decides. What no row knows is a
//! failed attempt, never an absence and never permission to go on.

use crate::metrics::Sent;
use crate::registry::error::Meaning;
use RequestKind::{Blob, Child, Deletion, Manifest, Mount, Referrers, Tag, Token, Upload};

/// What was asked of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestKind {
    /// `/v2/` alone.
    Ping,
    /// A token.
    Token,
    /// A manifest, by tag or digest.
    Manifest,
    /// A list of referrers.
    Referrers,
    /// A blob.
    Blob,
    /// That it takes a manifest under its digest.
    Child,
    /// That it sets a tag.
    Tag,
    /// That it deletes a tag.
    Deletion,
    /// That it takes a blob.
    Upload,
    /// That it takes a blob of another repository.
    Mount,
}

/// A row: what has to hold, and what that means. What is empty always holds.
struct Rule {
    /// What was asked, one of these.
    asked: &'static [RequestKind],
    /// The status, one of these; below 10 all that begin with it.
    status: &'static [u16],
    /// The code of the first error, one of these.
    code: &'static [&'static str],
    /// What is said, one of these; ` … ` stands for any words between.
    words: &'static [&'static str],
    meaning: Meaning,
}

const ANY: &[&str] = &[];
const READS: &[RequestKind] = &[Manifest, Referrers, Blob];
const PUTS: &[RequestKind] = &[Child, Tag];
const TAGS: &[RequestKind] = &[Tag, Deletion];
const WRITES: &[RequestKind] = &[Child, Tag, Deletion, Upload, Mount];

/// How quay, distribution and others say that a manifest's content is not there, digests and quotes left out.
const CONTENT: &[&str] = &[
    "unknown blob",
    "unknown child",
    "unknown layer",
    "unknown manifest",
    "blob unknown",
    "layer unknown",
    "manifest unknown",
    "blob is unknown",
    "layer is unknown",
    "manifest is unknown",
    "blob not found",
    "blobs not found",
    "layer not found",
    "manifest not found",
    "blob does not exist",
    "layer does not exist",
    "manifest does not exist",
    "missing blob",
    "missing child",
    "could not find blob",
    "could not find child",
    "could not find layer",
    "could not find manifest",
    "could not load blob",
    "could not load child",
    "could not load config",
    "could not load layer",
    "could not load manifest",
    "unable to retrieve child",
    "unable to retrieve manifest",
];
/// Of which kind something is, which is no content, though it may be unknown or not found.
const KINDS: &[&str] = &[
    "media type",
    "mediatype",
    "media-type",
    "blob type",
    "config type",
    "layer type",
    "manifest type",
    "manifest schema",
    "manifest version",
    "field",
    "unknown key",
    "property",
    "unsupported",
];
/// How registries say that a tag must not move.
const FIXED: &[&str] = &[
    "is immutable",
    "are immutable",
    "as immutable",
    "immutable tag",
    "tag immutab",
    "immutability",
    "cannot be overwritten",
    "does not allow updating assets",
];
/// What is not there, in the envelope of Harbor.
const NAMED: &[&str] = &[
    "artifact … not found",
    "manifest … not found",
    "repository … not found",
    "tag … not found",
];

/// The table: quay, distribution, Harbor, ECR and their likes. The first row that fits decides.
#[rustfmt::skip]
const RULES: &[Rule] = &[
    // Whatever was asked.
    rule(&[],       &[429],                     ANY,                                                      ANY,                        Meaning::Limited),
    rule(&[],       &[501, 505],                ANY,                                                      ANY,                        Meaning::Other),
    rule(&[],       &[408, 5],                  ANY,                                                      ANY,                        Meaning::Unavailable),
    // A write goes to no place but its own; 307 and 308 within the registry's own address are followed before.
    rule(WRITES,    &[3],                       ANY,                                                      ANY,                        Meaning::Redirected),
    // Not to be mounted is to be sent.
    rule(&[Mount],  &[4],                       ANY,                                                      ANY,                        Meaning::NotMounted),
    rule(&[],       &[401],                     ANY,                                                      ANY,                        Meaning::Unauthorized),
    // Tags that must not move: quay and others by code; ECR 400 TAG_INVALID, Harbor 412 PRECONDITION, Nexus 400, by their words.
    rule(TAGS,      &[400, 403, 405, 409, 412], &["TAG_IMMUTABLE", "TAG_ALREADY_EXISTS", "IMAGETAGALREADYEXISTSEXCEPTION"], ANY,        Meaning::Immutable),
    rule(TAGS,      &[400, 403, 405, 409, 412], ANY,                                                      FIXED,                      Meaning::Immutable),
    rule(WRITES,    &[403, 412],                ANY,                                                      &["quota", "upper limit"],  Meaning::QuotaExceeded),
    rule(&[],       &[403],                     ANY,                                                      ANY,                        Meaning::Denied),
    // Maintenance, which quay tells from a method that is none only by code and words; a disabled namespace is none.
    rule(&[Token],  &[405],                     ANY,                                                      &["namespace … disabled"],  Meaning::Unauthorized),
    rule(WRITES,    &[405],                     &["UNSUPPORTED"],                                         ANY,                        Meaning::Other),
    rule(WRITES,    &[405],                     ANY,                                                      &["namespace … disabled"],  Meaning::Denied),
    // A registry that deletes no tags says so by the same answers; none of them is a time that passes.
    rule(&[Deletion], &[405],                   ANY,                                                      &["readonly", "read-only", "currently disabled"], Meaning::ReadOnly),
    rule(&[Deletion], &[405],                   ANY,                                                      ANY,                        Meaning::Other),
    rule(WRITES,    &[405],                     &["DENIED", "METHOD NOT ALLOWED", "METHOD_NOT_ALLOWED"],  ANY,                        Meaning::ReadOnly),
    rule(WRITES,    &[405],                     ANY,                                                      &["method not allowed", "readonly", "read-only", "currently disabled"], Meaning::ReadOnly),
    // Sizes.
    rule(&[Upload], &[413],                     &["SIZE_INVALID"],                                        ANY,                        Meaning::TooLarge),
    rule(&[Upload], &[413],                     ANY,                                                      ANY,                        Meaning::TurnedAway),
    rule(&[],       &[413],                     ANY,                                                      ANY,                        Meaning::TooLarge),
    rule(&[],       &[415],                     ANY,                                                      ANY,                        Meaning::Unsupported),
    // Uploads.
    rule(&[Upload], &[4],                       &["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"],          ANY,                        Meaning::SessionLost),
    rule(&[Upload], &[416],                     ANY,                                                      ANY,                        Meaning::SessionLost),
    // Manifests that lack their content, and others that are not taken.
    rule(PUTS,      &[400, 404],                &["MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"], ANY,                  Meaning::ContentMissing),
    rule(PUTS,      &[400, 404],                &["MANIFEST_INVALID"],                                    KINDS,                      Meaning::Rejected),
    rule(PUTS,      &[400, 404],                &["MANIFEST_INVALID"],                                    CONTENT,                    Meaning::ContentMissing),
    rule(&[],       &[400],                     &["MANIFEST_INVALID"],                                    ANY,                        Meaning::Rejected),
    // Absence, which only the registry itself can tell.
    rule(READS,     &[404],                     &["NAME_UNKNOWN"],                                        ANY,                        Meaning::Absent),
    rule(&[Manifest, Referrers], &[404],        &["MANIFEST_UNKNOWN", "TAG_EXPIRED"],                     ANY,                        Meaning::Absent),
    rule(&[Manifest, Referrers], &[404],        &["NOT_FOUND"],                                           NAMED,                      Meaning::Absent),
    rule(&[Deletion], &[404],                   &["MANIFEST_UNKNOWN", "TAG_EXPIRED"],                     ANY,                        Meaning::Absent),
    rule(&[Blob],   &[404],                     &["BLOB_UNKNOWN"],                                        ANY,                        Meaning::Absent),
    rule(&[Blob],   &[404],                     &["NOT_FOUND"],                                           &["blob … not found", "repository … not found"], Meaning::Absent),
    rule(WRITES,    &[404],                     &["NAME_UNKNOWN"],                                        ANY,                        Meaning::NoRepository),
    rule(WRITES,    &[404],                     &["NOT_FOUND"],                                           &["project … not found", "repository … not found"], Meaning::NoRepository),
    // Names and contents.
    rule(&[],       &[400],                     &["DIGEST_INVALID", "SIZE_INVALID"],                      ANY,                        Meaning::Mismatch),
    rule(&[],       &[400],                     &["NAME_INVALID", "TAG_INVALID"],                         ANY,                        Meaning::BadName),
];

const fn rule(
    asked: &'static [RequestKind],
    status: &'static [u16],
    code: &'static [&'static str],
    words: &'static [&'static str],
    meaning: Meaning,
) -> Rule {
    Rule {
        asked,
        status,
        code,
        words,
        meaning,
    }
}

/// What an answer means. `code` is that of its first error, empty where there is none; `words` as [`words`] makes them.
pub(crate) fn meaning(asked: RequestKind, status: u16, code: &str, words: &str) -> Meaning {
    let fits = |rule: &&Rule| {
        (rule.asked.is_empty() || rule.asked.contains(&asked))
            && rule
                .status
                .iter()
                .any(|wanted| *wanted == status || *wanted == status / 100)
            && (rule.code.is_empty() || rule.code.iter().any(|c| c.eq_ignore_ascii_case(code)))
            && (rule.words.is_empty() || rule.words.iter().any(|pattern| says(words, pattern)))
    };
    RULES
        .iter()
        .find(fits)
        .map_or(Meaning::Other, |rule| rule.meaning)
}

/// Whether the parts of `pattern` come in `words` in their order.
fn says(mut words: &str, pattern: &str) -> bool {
    pattern
        .split(" … ")
        .all(|part| match words.split_once(part) {
            Some((_, after)) => {
                words = after;
                true
            }
            None => false,
        })
}

/// What an answer says, for the table: in lower case, one space between words, without quotes and digests, which stand anywhere.
pub(crate) fn words(text: &str) -> String {
    let text = text.to_lowercase();
    let plain = |c: char| c.is_alphanumeric() || "-_:".contains(c);
    let words = text
        .split(|c: char| !plain(c))
        .map(|word| word.trim_matches(':'))
        .filter(|word| !word.is_empty() && !word.starts_with("sha256:"));
    words.collect::<Vec<_>>().join(" ")
}

impl RequestKind {
    /// Whether it changes something.
    pub(crate) fn is_write(self) -> bool {
        WRITES.contains(&self)
    }

    /// What it is counted as.
    pub(crate) fn sent(self) -> Sent {
        match self {
            Self::Ping => Sent::Ping,
            Self::Token => Sent::Token,
            Self::Manifest | Self::Child => Sent::Manifest,
            Self::Tag | Self::Deletion => Sent::Tag,
            Self::Referrers => Sent::Referrers,
            Self::Blob => Sent::Blob,
            Self::Upload | Self::Mount => Sent::Upload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RequestKind::{Ping, Token};
    use super::*;

    const EVERY: [RequestKind; 10] = [
        Ping, Token, Manifest, Referrers, Blob, Child, Tag, Deletion, Upload, Mount,
    ];

    /// An answer and what it means to those who asked this; to all others it means what the last column says.
    type Row = (
        u16,
        &'static str,
        &'static str,
        &'static [RequestKind],
        Meaning,
        Meaning,
    );

    #[rustfmt::skip]
    const ANSWERS: &[Row] = &[
        // Writes that belong elsewhere.
        (301, "", "moved", WRITES, Meaning::Redirected, Meaning::Other),
        // Absence: the registry's own word.
        (404, "MANIFEST_UNKNOWN", "manifest unknown", &[Manifest, Referrers, Deletion], Meaning::Absent, Meaning::Other),
        (404, "MANIFEST_UNKNOWN", "manifest unknown", &[Child, Tag], Meaning::ContentMissing, Meaning::Other),
        (404, "BLOB_UNKNOWN", "", &[Child, Tag], Meaning::ContentMissing, Meaning::Other),
        (404, "NOT_FOUND", "repository team/a not found", WRITE, Meaning::NoRepository, Meaning::Other),
        (404, "TAG_EXPIRED", "the tag has expired", &[Manifest, Referrers, Deletion], Meaning::Absent, Meaning::Other),
        (404, "NAME_UNKNOWN", "", &[Manifest, Referrers, Blob], Meaning::Absent, Meaning::Other),
        (404, "NOT_FOUND", "artifact team/a:x not found", &[Manifest, Referrers], Meaning::Absent, Meaning::Other),
        (404, "NOT_FOUND", "artifact team/a@sha256:00 not found", &[Manifest, Referrers], Meaning::Absent, Meaning::Other),
        (404, "NOT_FOUND", "repository team/a not found", &[Manifest, Referrers, Blob], Meaning::Absent, Meaning::Other),
        (404, "NOT_FOUND", "", &[], Meaning::Other, Meaning::Other),
        (404, "NOT_FOUND", "404 page not found", &[], Meaning::Other, Meaning::Other),
        (404, "NOT_FOUND", "the requested resource was not found", &[], Meaning::Other, Meaning::Other),
        (404, "NOT_FOUND", "project team not found", &[], Meaning::Other, Meaning::Other),
        (404, "BLOB_UNKNOWN", "", &[Blob], Meaning::Absent, Meaning::Other),
        (404, "UNKNOWN", "artifact team/a:x not found", &[], Meaning::Other, Meaning::Other),
        (404, "", "artifact x not found, says a page", &[], Meaning::Other, Meaning::Other),
        (404, "", "", &[], Meaning::Other, Meaning::Other),
        (400, "MANIFEST_UNKNOWN", "", &[Child, Tag], Meaning::ContentMissing, Meaning::Other),
        (410, "MANIFEST_UNKNOWN", "", &[], Meaning::Other, Meaning::Other),
        // Maintenance.
        (405, "DENIED", "System is currently read-only. Pulls will succeed", WRITE, Meaning::ReadOnly, Meaning::Other),
        (405, "METHOD NOT ALLOWED", "Pushes to the registry are currently disabled. Please contact", WRITE, Meaning::ReadOnly, Meaning::Other),
        (405, "", "<title>405 Method Not Allowed</title>", &[Child, Tag, Upload], Meaning::ReadOnly, Meaning::Other),
        (405, "", "<h1>405 Not Allowed</h1> nginx", &[], Meaning::Other, Meaning::Other),
        (405, "DENIED", "namespace 'x' has been disabled", WRITE, Meaning::Denied, Meaning::Other),
        (405, "DENIED", "namespace 'x' has been disabled", &[Token], Meaning::Unauthorized, Meaning::Other),
        (405, "UNSUPPORTED", "method not allowed", &[], Meaning::Other, Meaning::Other),
        (403, "DENIED", "read-only", &[], Meaning::Denied, Meaning::Denied),
        // Tags that must not move.
        (409, "TAG_IMMUTABLE", "", TAGS, Meaning::Immutable, Meaning::Other),
        (400, "TAG_IMMUTABLE", "", TAGS, Meaning::Immutable, Meaning::Other),
        (409, "TAG_ALREADY_EXISTS", "", TAGS, Meaning::Immutable, Meaning::Other),
        (400, "ImageTagAlreadyExistsException", "", TAGS, Meaning::Immutable, Meaning::Other),
        (400, "TAG_INVALID", "The image tag 'x' already exists in the 'a' repository and cannot be overwritten because the repository is immutable.",
            TAGS, Meaning::Immutable, Meaning::BadName),
        (400, "TAG_INVALID", "the tag is invalid", &[], Meaning::BadName, Meaning::BadName),
        (412, "PRECONDITION", "Failed to process request due to 'a:x' configured as immutable.", TAGS, Meaning::Immutable, Meaning::Other),
        (400, "UNKNOWN", "Repository does not allow updating assets: docker", TAGS, Meaning::Immutable, Meaning::Other),
        (403, "DENIED", "Update tag x: the repository has immutable tags enabled", TAGS, Meaning::Immutable, Meaning::Denied),
        (403, "DENIED", "requested access to immutable/team is denied", &[], Meaning::Denied, Meaning::Denied),
        (412, "PROJECTPOLICYVIOLATION", "current image with vulnerabilities", &[], Meaning::Other, Meaning::Other),
        // Content that is missing, and manifests that are not taken.
        (400, "MANIFEST_INVALID", "manifest invalid message Unknown blob `sha256:0a`", &[Child, Tag], Meaning::ContentMissing, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "Unknown child manifest `sha256:0a`", &[Child, Tag], Meaning::ContentMissing, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "blob \"sha256:0a\" not found", &[Child, Tag], Meaning::ContentMissing, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "Could not load manifest contents", &[Child, Tag], Meaning::ContentMissing, Meaning::Rejected),
        (400, "MANIFEST_BLOB_UNKNOWN", "", &[Child, Tag], Meaning::ContentMissing, Meaning::Other),
        (404, "MANIFEST_BLOB_UNKNOWN", "", &[Child, Tag], Meaning::ContentMissing, Meaning::Other),
        (400, "MANIFEST_INVALID", "manifest invalid", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "unknown media type application/x", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "unknown layer media type application/x", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "Unknown manifest type `x`", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "an unknown error", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "unknown digest algorithm", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "required field 'layers' not found", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "manifest missing layers", &[], Meaning::Rejected, Meaning::Rejected),
        (400, "MANIFEST_INVALID", "schema not found", &[], Meaning::Rejected, Meaning::Rejected),
        // Sizes.
        (413, "SIZE_INVALID", "", &[Upload], Meaning::TooLarge, Meaning::TooLarge),
        (413, "", "<h1>413 Request Entity Too Large</h1>", &[Upload], Meaning::TurnedAway, Meaning::TooLarge),
        (413, "UNKNOWN", "", &[Upload], Meaning::TurnedAway, Meaning::TooLarge),
        (400, "SIZE_INVALID", "", &[], Meaning::Mismatch, Meaning::Mismatch),
        (400, "DIGEST_INVALID", "", &[], Meaning::Mismatch, Meaning::Mismatch),
        // Uploads.
        (404, "BLOB_UPLOAD_UNKNOWN", "", &[Upload], Meaning::SessionLost, Meaning::Other),
        (400, "BLOB_UPLOAD_INVALID", "", &[Upload], Meaning::SessionLost, Meaning::Other),
        (416, "", "", &[Upload], Meaning::SessionLost, Meaning::Other),
        (404, "NAME_UNKNOWN", "", WRITE, Meaning::NoRepository, Meaning::Other),
        (404, "NOT_FOUND", "project team not found", WRITE, Meaning::NoRepository, Meaning::Other),
        // Everything else.
        (401, "UNAUTHORIZED", "", &[], Meaning::Unauthorized, Meaning::Unauthorized),
        (403, "DENIED", "", &[], Meaning::Denied, Meaning::Denied),
        (403, "DENIED", "Quota has been exceeded", WRITE, Meaning::QuotaExceeded, Meaning::Denied),
        (412, "PRECONDITION", "adding 1 GiB will exceed the configured upper limit of 1 GiB", WRITE, Meaning::QuotaExceeded, Meaning::Other),
        (400, "NAME_INVALID", "", &[], Meaning::BadName, Meaning::BadName),
        (415, "", "", &[], Meaning::Unsupported, Meaning::Unsupported),
        (418, "", "", &[], Meaning::Other, Meaning::Other),
        (302, "", "", WRITES, Meaning::Redirected, Meaning::Other),
    ];
    /// All writes but the mount, which falls back.
    const WRITE: &[RequestKind] = &[Child, Tag, Deletion, Upload];

    #[test]
    fn every_answer_means_what_the_registries_mean() {
        for (status, code, said, asked, meant, otherwise) in ANSWERS {
            // Rows of one answer say each what it means to some.
            let rows = || {
                ANSWERS
                    .iter()
                    .filter(|row| (row.0, row.1, row.2) == (*status, *code, *said))
            };
            for one in EVERY {
                let wanted = match one {
                    Mount if (400..500).contains(status) => Meaning::NotMounted,
                    one if asked.contains(&one) => *meant,
                    one => rows()
                        .find(|row| row.3.contains(&one))
                        .map_or(*otherwise, |row| row.4),
                };
                let found = meaning(one, *status, code, &words(said));
                assert_eq!(found, wanted, "{one:?}: {status} {code} {said}");
            }
        }
    }

    #[test]
    fn whoever_asks_is_told_to_wait_in_one_way() {
        for asked in EVERY {
            for code in ["", "UNKNOWN", "DENIED", "MANIFEST_UNKNOWN"] {
                assert_eq!(meaning(asked, 429, code, ""), Meaning::Limited);
                for status in [408, 500, 502, 503, 504, 507, 520, 599] {
                    assert_eq!(
                        meaning(asked, status, code, ""),
                        Meaning::Unavailable,
                        "{status}"
                    );
                }
                for status in [501, 505] {
                    assert_eq!(meaning(asked, status, code, ""), Meaning::Other, "{status}");
                }
            }
        }
    }

    #[test]
    fn only_a_404_of_the_registry_itself_is_an_absence() {
        for row in RULES.iter().filter(|row| row.meaning == Meaning::Absent) {
            assert_eq!(row.status, [404]);
            let looks = |asked| READS.contains(asked) || *asked == Deletion;
            assert!(!row.code.is_empty() && row.asked.iter().all(looks));
        }
    }

    #[test]
    fn words_are_compared_without_quotes_digests_and_case() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let text = format!("Unknown  BLOB \n`{digest}`, of\"{digest}\": gone");
        assert_eq!(words(&text), "unknown blob of gone");
        assert!(says("a b c", "a … c") && !says("c b a", "a … c") && !says("a", "a … a"));
    }
}
