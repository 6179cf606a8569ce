//! What was found, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::super::columns::{or_dash, table};
use super::super::output::print_text;
use super::against::{Comparison, Difference, Missed, name};
use crate::image::{Digest, Float, Source};
use crate::machine::{Bytes, Copying, Expiry, Fault, FaultClass, Forecast, Tally, Write};
use crate::store::Key;

const COLUMNS: [&str; 7] = [
    "REQUEST", "FLOAT", "VERDICT", "NOW", "SOURCE", "COPY", "TAGS",
];

/// All that was found.
pub(super) struct Report {
    /// The requests' names.
    pub(super) requests: Vec<String>,
    /// Their images, in their order.
    pub(super) images: Vec<Found>,
    /// What the script moves and no request does.
    pub(super) missed: Vec<Missed>,
}

/// What was found of one image.
pub(super) struct Found {
    /// The index of its request.
    pub(super) request: usize,
    pub(super) source: Source,
    pub(super) float: Float,
    pub(super) finding: Result<Forecast, Fault>,
    pub(super) push: Push,
    /// An earlier request on the same float.
    pub(super) before: Option<Key>,
    pub(super) script: Option<Comparison>,
}

/// Whether the float's repository may be written.
pub(super) enum Push {
    Granted,
    Denied(Fault),
    /// Only writing would tell.
    NotKnown,
}

/// What would become of an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Promote,
    Unchanged,
    Fail,
    NotKnown,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Promote => "Promote",
            Self::Unchanged => "Unchanged",
            Self::Fail => "Fail",
            Self::NotKnown => "NotKnown",
        }
    }
}

impl Push {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Granted => "Granted",
            Self::Denied(_) => "Denied",
            Self::NotKnown => "NotKnown",
        }
    }
}

impl Found {
    fn verdict(&self) -> Verdict {
        match (&self.finding, &self.push) {
            (Ok(forecast), _) if forecast.is_unchanged() => Verdict::Unchanged,
            (Ok(_), Push::Denied(_)) => Verdict::Fail,
            (Ok(_), _) => Verdict::Promote,
            (Err(fault), _) if matches!(fault.class, FaultClass::Wait { .. }) => Verdict::NotKnown,
            (Err(_), _) => Verdict::Fail,
        }
    }

    fn fault(&self) -> Option<&Fault> {
        match (&self.finding, &self.push) {
            (Err(fault), _) | (Ok(_), Push::Denied(fault)) => Some(fault),
            (Ok(_), _) => None,
        }
    }

    /// One line.
    fn message(&self) -> String {
        let mut message = match (self.fault(), &self.finding) {
            (Some(fault), _) => fault.message.clone(),
            (None, Ok(forecast)) => forecast.to_string(),
            (None, Err(_)) => String::new(),
        };
        if let Some(before) = &self.before {
            let _ = write!(
                message,
                "; {before} moves this float first, which is not foreseen here"
            );
        }
        message
    }

    fn is_in_the_way(&self) -> bool {
        matches!(self.verdict(), Verdict::Fail | Verdict::NotKnown)
            || self.script.as_ref().is_some_and(Comparison::contradicts)
    }

    fn json(&self) -> Value {
        let forecast = self.finding.as_ref().ok();
        let text = |digest: Option<crate::image::Digest>| digest.map(|digest| digest.to_string());
        let mut value = json!({
            "source": self.source.to_string(),
            "float": self.float.to_string(),
            "verdict": self.verdict().as_str(),
            "reason": self.fault().map(|fault| fault.reason.as_str()),
            "message": self.message(),
            "push": self.push.as_str(),
            "sourceDigest": text(forecast.map(|forecast| forecast.source)),
            "mediaType": forecast.and_then(|forecast| forecast.media_type.clone()),
            "floatDigest": text(forecast.and_then(|forecast| forecast.held.float)),
            "tags": forecast.map(|forecast| tags(&self.float, forecast)).unwrap_or_default(),
            "expiring": forecast.map(|forecast| expiring(&forecast.expiring)).unwrap_or_default(),
        });
        if let Some(Forecast { copying, .. }) = forecast {
            let tally = |tally: Tally| json!({"blobs": tally.blobs, "bytes": tally.bytes});
            value["copy"] = json!({
                "present": tally(copying.present),
                "mountable": tally(copying.mountable),
                "missing": tally(copying.missing),
                "manifests": {"present": copying.children.present, "missing": copying.children.missing},
            });
        }
        if let Some(script) = &self.script {
            value["script"] = script.json();
        }
        value
    }
}

/// The tags that would be written, a value each.
fn tags(float: &Float, forecast: &Forecast) -> Vec<Value> {
    let tag = |write: &Write| {
        json!({
            "tag": name(float, &write.tag),
            "digest": write.digest.map(|digest| digest.to_string()),
            "holds": write.holds.map(|digest| digest.to_string()),
        })
    };
    forecast.writes.iter().map(tag).collect()
}

/// The lines that say which tags would expire.
fn expiring(expiring: &[Expiry]) -> Vec<String> {
    expiring.iter().map(Expiry::to_string).collect()
}

impl Report {
    /// How many images, or floats of a script, something is in the way of.
    pub(super) fn in_the_way(&self) -> usize {
        self.images
            .iter()
            .filter(|image| image.is_in_the_way())
            .count()
            + self.missed.len()
    }

    /// For programs.
    pub(super) fn value(&self) -> Value {
        let requests = self.requests.iter().enumerate().map(|(number, name)| {
            let images = self.images.iter().filter(|image| image.request == number);
            json!({"name": name, "images": images.map(Found::json).collect::<Vec<_>>()})
        });
        let mut report = json!({
            "requests": requests.collect::<Vec<_>>(),
            "inTheWay": self.in_the_way(),
        });
        if self.images.iter().any(|image| image.script.is_some()) {
            report["missed"] = self.missed.iter().map(Missed::json).collect();
        }
        report
    }

    /// For people: a line for each float, and below it what is in the way, or, if it is to be `wide`, all that was found.
    ///
    /// # Errors
    /// What could not be written, unless the reader has gone.
    pub(super) fn print_table(&self, wide: bool) -> Result<(), String> {
        let name = |image: &Found| self.requests.get(image.request).cloned();
        let rows = self.images.iter().map(|image| image.row(name(image)));
        let mut table = table(&COLUMNS, &rows.collect::<Vec<_>>()).into_iter();
        let mut lines: Vec<String> = table.next().into_iter().collect();
        for (image, line) in self.images.iter().zip(table) {
            lines.push(line);
            lines.extend(
                image
                    .notes(wide)
                    .into_iter()
                    .map(|note| format!("    {note}")),
            );
        }
        lines.extend(self.missed.iter().map(Missed::line));
        lines.push(self.summary());
        print_text(&lines.join("\n"))
    }

    fn summary(&self) -> String {
        let count = |verdict| {
            self.images
                .iter()
                .filter(|image| image.verdict() == verdict)
                .count()
        };
        let mut counts = vec![
            format!("{} would be promoted", count(Verdict::Promote)),
            format!("{} already in place", count(Verdict::Unchanged)),
        ];
        for (verdict, what) in [
            (Verdict::Fail, "would fail"),
            (Verdict::NotKnown, "not known"),
        ] {
            if count(verdict) > 0 {
                counts.push(format!("{} {what}", count(verdict)));
            }
        }
        let contradict =
            |image: &&Found| image.script.as_ref().is_some_and(Comparison::contradicts);
        let differ = self.images.iter().filter(contradict).count() + self.missed.len();
        if differ > 0 {
            counts.push(format!("{differ} not as in the script"));
        }
        format!("{}; nothing was written", counts.join(", "))
    }
}

impl Found {
    fn row(&self, request: Option<String>) -> Vec<String> {
        let forecast = self.finding.as_ref().ok();
        let short = |digest: Option<Digest>| or_dash(digest.map(|digest| digest.short()));
        vec![
            or_dash(request),
            self.float.to_string(),
            self.verdict().as_str().into(),
            short(forecast.and_then(|forecast| forecast.held.float)),
            short(forecast.map(|forecast| forecast.source)),
            or_dash(forecast.and_then(|forecast| brought(&forecast.copying))),
            or_dash(forecast.map(|forecast| forecast.writes.len().to_string())),
        ]
    }

    /// What has to be said of it beside its line.
    fn notes(&self, wide: bool) -> Vec<String> {
        let mut notes = Vec::new();
        match self.fault() {
            Some(fault) => notes.push(format!("{}: {}", fault.reason, self.message())),
            None if wide || self.before.is_some() => notes.push(self.message()),
            None => {}
        }
        if let Ok(forecast) = &self.finding {
            if wide && !forecast.is_unchanged() {
                self.details(forecast, &mut notes);
            } else if !wide {
                notes.extend(expiring(&forecast.expiring));
            }
        }
        let script = self
            .script
            .iter()
            .filter(|script| wide || !script.is_same());
        notes.extend(script.flat_map(Comparison::lines));
        notes
    }

    fn details(&self, forecast: &Forecast, lines: &mut Vec<String>) {
        lines.push(format!(
            "from  {}@{}",
            self.source.repository, forecast.source
        ));
        let copying = forecast.copying;
        for (what, tally) in [
            ("there", copying.present),
            ("mount", copying.mountable),
            ("copy ", copying.missing),
        ] {
            if tally.blobs > 0 {
                let bytes = Bytes(tally.bytes);
                lines.push(format!("{what} {} blobs, {bytes}", tally.blobs));
            }
        }
        let children = copying.children;
        if children.present + children.missing > 0 {
            lines.push(format!(
                "child manifests: {} to put, {} there",
                children.missing, children.present
            ));
        }
        let named = |write: &Write| name(&self.float, &write.tag);
        let width = forecast.writes.iter().map(|write| named(write).len()).max();
        for write in &forecast.writes {
            let (tag, width) = (named(write), width.unwrap_or_default());
            let Some(digest) = write.digest else {
                lines.push(format!(
                    "remove {tag}, where the registry deletes a tag alone"
                ));
                continue;
            };
            let held = match write.holds {
                Some(held) if held == digest => "as now".into(),
                Some(held) => format!("now {held}"),
                None => "new".into(),
            };
            lines.push(format!("write {tag:<width$}  {digest}  {held}"));
        }
        lines.push(format!(
            "push  {}",
            match &self.push {
                Push::Granted => "the token says that it may",
                Push::Denied(_) => "denied",
                Push::NotKnown => "not known without writing",
            }
        ));
    }
}

/// What is brought to the float's repository, if anything.
fn brought(copying: &Copying) -> Option<String> {
    match (copying.missing, copying.mountable) {
        (missing, _) if missing.blobs > 0 => Some(Bytes(missing.bytes).to_string()),
        (_, mountable) if mountable.blobs > 0 => Some("mounted".into()),
        _ => None,
    }
}

impl Difference {
    pub(super) fn json(&self) -> Value {
        json!({"tag": self.tag, "why": self.why})
    }
}
