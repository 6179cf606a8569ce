//! The result of a run, for people: on standard error.

use super::progress::Display;
use crate::api::{ImageStatus, PinStatus, PromotionRequest};
use crate::machine::Phase;
use crate::store::Key;

/// Says where a request and each of its floats ended; on a quiet display, only of one that did not end well.
pub(super) fn summarise(object: &PromotionRequest, display: &Display) {
    let Some(status) = &object.status else { return };
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let progressing = status.conditions.iter().find(|c| c.type_ == "Progressing");
    let verdict = match (phase, progressing) {
        ("Posted", _) | (_, None) => posted(&status.images),
        (_, Some(condition)) => format!("{}: {}", condition.reason, condition.message),
    };
    if display.is_quiet() && object.phase().is_some_and(Phase::is_complete) {
        return;
    }
    let mut said = vec![format!("{}  {phase}, {verdict}", Key::from(object))];
    said.extend(status.images.iter().flat_map(|image| lines(image, phase)));
    display.warn(&said.join("\n"));
}

fn posted(images: &[ImageStatus]) -> String {
    let unchanged = images.iter().filter(|i| i.unchanged == Some(true)).count();
    let first = images.iter().filter(|i| i.first_promotion == Some(true));
    let (all, first) = (images.len(), first.count());
    let mut counts = vec![format!("{} promoted", all - unchanged)];
    if first > 0 {
        counts.push(format!("{first} of them for the first time"));
    }
    if unchanged > 0 {
        counts.push(format!("{unchanged} already in place"));
    }
    counts.join(", ")
}

/// An image's line, and those below it: where it ended, and what it was on. `phase` is that of the whole.
pub(super) fn lines(image: &ImageStatus, phase: &str) -> Vec<String> {
    let why = image.message.as_ref().or(image.reason.as_ref());
    // The line names the float already.
    let named = format!("{}: ", image.float);
    let why = why.map_or_else(String::new, |why| {
        format!(": {}", why.strip_prefix(&named).unwrap_or(why))
    });
    let head = match image.phase.as_str() {
        "Posted" | "Planned" if image.phase == phase => String::new(),
        "Posted" => "  Posted".into(),
        other => format!("  {other}{why}"),
    };
    let mut lines = vec![format!("  {}{head}", image.float)];
    let source = image.source.as_ref().map(|source| source.digest.as_str());
    match (image.phase.as_str(), source) {
        ("Posted", Some(digest)) => lines.push(format!("    promoted  {digest}")),
        ("Planned", Some(digest)) => {
            lines.push(format!("    would be {digest}"));
            lines.extend(image.message.as_ref().map(|found| format!("    {found}")));
        }
        _ => {}
    }
    if let Some(digest) = &image.would_displace {
        lines.push(format!("    is {digest}"));
    }
    for PinStatus {
        digest, prune_tag, ..
    } in &image.displaced
    {
        lines.push(if image.phase == "Posted" {
            format!("    displaced {digest}, kept as {prune_tag}")
        } else {
            format!("    found {digest}, its pin is {prune_tag}")
        });
    }
    for PinStatus {
        digest, prune_tag, ..
    } in &image.rescued
    {
        // It was on another tag of the float and never on the float itself, as far as this request saw.
        lines.push(format!("    rescued   {digest}, kept as {prune_tag}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_rescued_is_not_called_displaced_and_a_float_is_named_once_a_line() {
        let image =
            |value: serde_json::Value| -> ImageStatus { serde_json::from_value(value).unwrap() };
        let posted = image(serde_json::json!({
            "float": "x.io/a/b:f", "phase": "Posted", "source": {"digest": "sha256:n"},
            "displaced": [{"digest": "sha256:o", "pruneTag": "1_prune_f"}],
            "rescued": [{"digest": "sha256:r", "pruneTag": "2_prune_f__rescued"}],
        }));
        assert_eq!(
            lines(&posted, "Posted"),
            [
                "  x.io/a/b:f",
                "    promoted  sha256:n",
                "    displaced sha256:o, kept as 1_prune_f",
                "    rescued   sha256:r, kept as 2_prune_f__rescued",
            ]
        );
        let failed = image(serde_json::json!({
            "float": "x.io/a/b:f", "phase": "Failed", "message": "x.io/a/b:f: denied",
        }));
        assert_eq!(lines(&failed, "Failed"), ["  x.io/a/b:f  Failed: denied"]);
    }
}
