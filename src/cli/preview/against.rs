//! A script beside this program: the tags it would write, and those that a promotion would.
//!
//! In comes what a script means and what was found of an image; out come the differences, each with its cause where it has a known
//! one. What contradicts a script is another source, or a float that only one of both moves.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::convert::{Intended, Intent, STAMP};
use crate::image::{Float, Stamp};
use crate::machine::{Forecast, ImageSpec, WrittenTag};

/// What a script does, by float.
pub(super) struct Script {
    floats: BTreeMap<Float, Intended>,
}

/// What the script and a promotion do about one float.
pub(super) enum Comparison {
    /// The script does not move it.
    Absent,
    /// The script moves it to another image.
    OtherSource { place: String, source: String },
    /// Both move it to the same image.
    Same {
        place: String,
        /// Tags that only the script writes.
        script: Vec<Difference>,
        /// Tags that only the promotion writes.
        promotion: Vec<Difference>,
    },
}

/// A tag that one of both writes, and why.
pub(super) struct Difference {
    pub(super) tag: String,
    pub(super) why: &'static str,
}

/// A float that the script moves and no request does.
pub(super) struct Missed {
    float: String,
    source: String,
    place: String,
}

/// The name of a tag; the stamp of a prune tag is not known before it is written.
pub(super) fn name(float: &Float, tag: &WrittenTag) -> String {
    match tag {
        WrittenTag::Named(tag) => tag.to_string(),
        WrittenTag::Prune { rescue } => {
            let stamped = if *rescue {
                Float::rescued
            } else {
                Float::prune
            };
            // Of the real name all but the digits that stand for the time.
            let tag = stamped(float, Stamp::at(Timestamp::UNIX_EPOCH)).to_string();
            format!("{STAMP}{}", &tag[STAMP.len()..])
        }
    }
}

impl Script {
    pub(super) fn of(intent: Intent) -> Self {
        let floats = intent
            .floats
            .into_iter()
            .map(|intended| (intended.float.clone(), intended));
        Self {
            floats: floats.collect(),
        }
    }

    /// What it does about an image's float, beside what was foreseen.
    pub(super) fn compare(&self, image: &ImageSpec, forecast: Option<&Forecast>) -> Comparison {
        let Some(intended) = self.floats.get(&image.float) else {
            return Comparison::Absent;
        };
        let place = intended.position.to_string();
        if intended.source != image.source {
            let source = intended.source.to_string();
            return Comparison::OtherSource { place, source };
        }
        let (script, promotion) = match forecast {
            Some(forecast) => differences(intended, forecast),
            None => (Vec::new(), Vec::new()),
        };
        Comparison::Same {
            place,
            script,
            promotion,
        }
    }

    /// What it moves beside these floats.
    pub(super) fn missed(&self, floats: &BTreeSet<&Float>) -> Vec<Missed> {
        let missed = self
            .floats
            .values()
            .filter(|intended| !floats.contains(&intended.float));
        missed
            .map(|intended| Missed {
                float: intended.float.to_string(),
                source: intended.source.to_string(),
                place: intended.position.to_string(),
            })
            .collect()
    }
}

/// The tags that only the script, and those that only the promotion, would write.
fn differences(intended: &Intended, forecast: &Forecast) -> (Vec<Difference>, Vec<Difference>) {
    let float = &intended.float;
    let mut script: BTreeSet<String> = intended.pins.clone();
    script.insert(float.tag().to_string());
    if forecast.held.float.is_none() {
        // The script backs up and posts only what exists before, too.
        script.retain(|tag| *tag == float.tag().as_str() || *tag == float.incoming().as_str());
    }
    let writes = || forecast.writes.iter();
    let rescues = |tag: &str| {
        writes().all(|write| {
            name(float, &write.tag) != tag || write.tag == WrittenTag::Prune { rescue: true }
        })
    };
    let of = |deleted: bool| {
        let tags = writes().filter(move |write| write.digest.is_none() == deleted);
        let tags = tags.map(|write| name(float, &write.tag));
        tags.collect::<BTreeSet<String>>()
    };
    let removed = of(true);
    let promotion = &of(false) - &removed;
    let only_script = script.difference(&promotion).map(|tag| Difference {
        tag: tag.clone(),
        why: if forecast.is_unchanged() {
            "the float is at the source already, so nothing is written"
        } else if removed.contains(tag) {
            "removed once the float holds the image, as spec.incoming says"
        } else if tag.starts_with(STAMP) {
            "prune tags are named after the whole tag of their float"
        } else {
            "not written by a promotion"
        },
    });
    let only_promotion = promotion.difference(&script).map(|tag| Difference {
        tag: tag.clone(),
        why: if tag.starts_with(STAMP) && rescues(tag) {
            "pins what another tag of the float holds alone, before that is overwritten"
        } else {
            "the script does not write it"
        },
    });
    (only_script.collect(), only_promotion.collect())
}

impl Comparison {
    /// Whether a promotion would leave the float elsewhere than the script.
    pub(super) fn contradicts(&self) -> bool {
        !matches!(self, Self::Same { .. })
    }

    pub(super) fn json(&self) -> Value {
        match self {
            Self::Absent => json!({"float": "Absent"}),
            Self::OtherSource { place, source } => {
                json!({"float": "OtherSource", "at": place, "source": source})
            }
            Self::Same {
                place,
                script,
                promotion,
            } => json!({
                "float": "Same",
                "at": place,
                "onlyScript": script.iter().map(Difference::json).collect::<Vec<_>>(),
                "onlyPromotion": promotion.iter().map(Difference::json).collect::<Vec<_>>(),
            }),
        }
    }

    /// Whether both write the same tags.
    pub(super) fn is_same(&self) -> bool {
        match self {
            Self::Absent | Self::OtherSource { .. } => false,
            Self::Same {
                script, promotion, ..
            } => script.is_empty() && promotion.is_empty(),
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        match self {
            Self::Absent => vec!["script: does not move this float".into()],
            Self::OtherSource { place, source } => {
                vec![format!(
                    "script: moves it to another image, {source} ({place})"
                )]
            }
            Self::Same {
                place,
                script,
                promotion,
            } => {
                if self.is_same() {
                    return vec![format!("script: the same ({place})")];
                }
                let say = |who: &'static str| {
                    move |difference: &Difference| {
                        format!("{who}: {} ({})", difference.tag, difference.why)
                    }
                };
                let script = script.iter().map(say("only the script"));
                script
                    .chain(promotion.iter().map(say("only a promotion")))
                    .collect()
            }
        }
    }
}

impl Missed {
    pub(super) fn json(&self) -> Value {
        json!({"float": self.float, "source": self.source, "at": self.place})
    }

    pub(super) fn line(&self) -> String {
        format!(
            "only the script moves {} to {} ({}); add it to a request",
            self.float, self.source, self.place
        )
    }
}
