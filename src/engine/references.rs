//! What is left once the floats of a request are at their end: tags of image streams that follow them.
//!
//! The request holds neither claim nor quota then, and the rest of the engine has forgotten it: its status says what is left, and a
//! task of its own does it, here or under the next leader. The order of what it asks of a stream stands in [`promotion_core::stream`].

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::SignedDuration;
use tokio::time::{Instant, sleep};

use super::admission::hosts;
use super::operation::{credential, fault};
use super::shared::{Engine, now};
use super::state::PendingSave;
use crate::api::references::{ReferenceState, ended, note, open};
use crate::api::status::record;
use crate::api::{self, PromotionRequest, conditions};
use crate::image::Digest;
use crate::machine::{Fault, Reason, References, Request};
use crate::registry::Progress;
use crate::store::streams::{StreamError, Streams};
use crate::store::{Access, AccessError, Key, Store};
use crate::stream::{Mark, Referred, StreamTag, Wanted};

/// How long it is tried.
const PATIENCE: SignedDuration = SignedDuration::from_hours(24);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// Looks of one request at a time.
const LOOKS: usize = 8;

/// What a task remembers between its tries.
#[derive(Default)]
struct Memo {
    tries: u32,
    /// Since when neither the float nor its `__post1` shows an image: a read may be old.
    missing: HashMap<usize, Instant>,
}

/// What one try came to: what became of tags, and what is waited for.
#[derive(Default)]
struct Tried {
    became: BTreeMap<usize, Result<Referred, String>>,
    waits: Option<(Reason, String)>,
}

/// One tag that is still to be set.
struct Open {
    index: usize,
    tag: StreamTag,
    digest: Digest,
}

impl<S: Store> Engine<S> {
    /// Sets the image stream tags of a request whose floats are at their end, unless that is being done.
    pub(super) fn reference(&self, key: &Key, uid: &str) {
        if !self.lock().referencing.insert(uid.to_owned()) {
            return;
        }
        let (engine, key, uid) = (self.clone(), key.clone(), uid.to_owned());
        tokio::spawn(async move {
            let mut memo = Memo::default();
            while let Some(pause) = engine.reference_once(&key, &uid, &mut memo).await {
                sleep(pause).await;
            }
            engine.lock().referencing.remove(&uid);
        });
    }

    /// Tries once; when to try again, if there is anything left.
    async fn reference_once(&self, key: &Key, uid: &str, memo: &mut Memo) -> Option<Duration> {
        let _turn = self.inner.references.enter(key.namespace.clone()).await;
        if self.lock().coordinator.is_draining() {
            return None;
        }
        let pause = Duration::from_secs(1 << memo.tries.min(6)).min(PAUSE_MAX);
        let again = Some(pause.mul_f64(rand::random_range(0.5..1.0)));
        memo.tries += 1;
        let loaded = match self.inner.store.load(key).await {
            Ok(loaded) => loaded?,
            Err(error) => {
                tracing::warn!("{error}");
                return again;
            }
        };
        let same = loaded.metadata.uid.as_deref() == Some(uid);
        if !same || !loaded.has_done_with_floats() || loaded.is_finished() {
            return None;
        }
        // Asked after the load, as by every save.
        if !self.is_trusted() {
            return again;
        }
        // A newer version's is left to it.
        let request = api::status::read(&loaded).ok()?;
        let mut tried = self.try_references(key, uid, &loaded, &request, memo).await;
        let since = conditions::referencing_since(&loaded).unwrap_or_else(now);
        let is_late = now().duration_since(since) >= PATIENCE;
        let mut object = loaded.clone();
        if is_late && let Some((_, why)) = tried.waits.take() {
            for (index, _) in open(&loaded) {
                let late = || Err(format!("not set within 24 h; last: {why}"));
                tried.became.entry(index).or_insert_with(late);
            }
        }
        for (&index, became) in &tried.became {
            note(&mut object, index, became);
        }
        let references = if open(&object).next().is_some() {
            References::Open
        } else {
            let failed = tried.became.iter().find_map(|(index, became)| {
                let tag = loaded.spec.images.get(*index)?.image_stream_tag.as_deref();
                let why = became.as_ref().err()?;
                Some(format!("{}: {why}", tag.unwrap_or_default()))
            });
            // One that failed in an earlier try has no text any more.
            let failed = failed.or_else(|| has_failed(&object));
            ended(&object, failed.as_deref())
        };
        let request = record(&object, references, now()).ok()?;
        let waits = tried.waits.filter(|_| !request.phase().is_finished());
        api::status::write(&mut object, &request, waits.as_ref(), now());
        if object.status == loaded.status {
            return again;
        }
        if !self.is_trusted() {
            return again;
        }
        match self.inner.store.save(&object).await {
            Ok(saved) => {
                self.count(&tried.became);
                if !saved.is_finished() {
                    return again;
                }
                let record = PendingSave::alone(uid, loaded, object, request);
                self.recorded(key, &record, Some(&saved)).await;
                None
            }
            Err(error) => {
                tracing::debug!("{error}");
                again
            }
        }
    }

    fn count(&self, became: &BTreeMap<usize, Result<Referred, String>>) {
        let of = |became: &Result<Referred, String>| match became {
            Ok(Referred::Set(_)) => ReferenceState::Set,
            Ok(Referred::Superseded) => ReferenceState::Superseded,
            Err(_) => ReferenceState::Failed,
        };
        for state in ReferenceState::ALL {
            let tags = became.values().filter(|one| of(one) == state).count();
            self.metrics().referenced(state, tags);
        }
    }

    async fn try_references(
        &self,
        key: &Key,
        uid: &str,
        object: &PromotionRequest,
        request: &Request,
        memo: &mut Memo,
    ) -> Tried {
        let mut tried = Tried::default();
        let all: Vec<Open> = open(object)
            .filter_map(|(index, tag)| {
                let source = request.status.images.get(index)?.source.as_ref()?;
                let digest = source.digest;
                Some(Open { index, tag, digest })
            })
            .collect();
        let namespace = object.spec.image_stream_namespace.as_deref();
        let (Some(streams), Some(namespace)) = (self.inner.store.streams(), namespace) else {
            let none = || Err("there are no image streams here".to_owned());
            tried.became = all.iter().map(|one| (one.index, none())).collect();
            return tried;
        };
        let paused = {
            let hosts = all.iter().flat_map(|one| hosts(request, one.index));
            self.lock().pause.message_for(hosts)
        };
        if let Some(message) = paused {
            tried.waits = Some((Reason::Paused, message));
            return tried;
        }
        let access = match self.inner.store.access(object).await {
            Ok(access) => access,
            Err(AccessError::NotAllowed(why)) => {
                let refused = all.iter().map(|one| (one.index, Err(why.clone())));
                tried.became = refused.collect();
                return tried;
            }
            Err(error) => {
                tried.waits = Some((Reason::Referencing, error.to_string()));
                return tried;
            }
        };
        let (granted, refused): (Vec<Open>, Vec<Open>) = all.into_iter().partition(|one| {
            let float = &request.spec.images[one.index].float;
            let granted = self
                .inner
                .store
                .grants(&key.namespace, float, (namespace, &one.tag));
            granted
                .map_err(|why| tried.became.insert(one.index, Err(why)))
                .is_ok()
        });
        drop(refused);
        let held = self
            .held(key, uid, request, &access, granted, (memo, &mut tried))
            .await;
        let mark = Mark {
            order: request.status.order.unwrap_or_default(),
            uid: uid.to_owned(),
        };
        self.set_all(streams, namespace, request, held, &mark, &mut tried)
            .await;
        tried
    }

    /// Those whose image the float's repository holds: only they may be referred to.
    async fn held(
        &self,
        key: &Key,
        uid: &str,
        request: &Request,
        access: &Access,
        all: Vec<Open>,
        (memo, tried): (&mut Memo, &mut Tried),
    ) -> Vec<Open> {
        let progress = Progress::of(&key.namespace, uid);
        let looks = all.into_iter().map(|one| async {
            let shown = self.is_held(request, access, &one, &progress).await;
            (one, shown)
        });
        let looked: Vec<_> = futures::stream::iter(looks).buffered(LOOKS).collect().await;
        let mut held = Vec::new();
        for (one, shown) in looked {
            match shown {
                Ok(true) => held.push(one),
                Ok(false) => {
                    let since = *memo.missing.entry(one.index).or_insert_with(Instant::now);
                    if since.elapsed() >= self.inner.settings.settle {
                        tried.became.insert(one.index, Ok(Referred::Superseded));
                    } else {
                        let float = &request.spec.images[one.index].float;
                        let message = format!("{float} has moved on; looking once more");
                        tried.waits = Some((Reason::Referencing, message));
                    }
                }
                Err(fault) => tried.waits = Some((Reason::Referencing, fault.message)),
            }
        }
        held
    }

    async fn is_held(
        &self,
        request: &Request,
        access: &Access,
        one: &Open,
        progress: &Progress,
    ) -> Result<bool, Fault> {
        let float = &request.spec.images[one.index].float;
        let repository = float.repository();
        let push = credential(&access.push, repository)?;
        for tag in [float.tag(), &float.post1()] {
            let registry = &self.inner.tools.registry;
            let shown = registry.get_authoritative(repository, tag, &push, progress);
            let shown = shown.await.map_err(|error| fault(&error))?;
            if shown.is_some_and(|manifest| manifest.digest == one.digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn set_all(
        &self,
        streams: &Streams,
        namespace: &str,
        request: &Request,
        held: Vec<Open>,
        mark: &Mark,
        tried: &mut Tried,
    ) {
        let mut by_stream: BTreeMap<String, Vec<Open>> = BTreeMap::new();
        for one in held {
            by_stream
                .entry(one.tag.stream.clone())
                .or_default()
                .push(one);
        }
        for (stream, tags) in by_stream {
            let wanted: Vec<_> = tags
                .iter()
                .map(|one| {
                    let float = request.spec.images[one.index].float.repository();
                    Wanted {
                        tag: one.tag.tag.to_string(),
                        image: streams.pull_spec(float, one.digest),
                    }
                })
                .collect();
            if !self.is_trusted() {
                return;
            }
            match streams.set(namespace, &stream, &wanted, mark).await {
                Ok(became) => {
                    let became = tags.iter().zip(became);
                    tried
                        .became
                        .extend(became.map(|(one, b)| (one.index, Ok(b))));
                }
                Err(StreamError::Refused(why)) => {
                    let refused = tags.iter().map(|one| (one.index, Err(why.clone())));
                    tried.became.extend(refused);
                }
                Err(StreamError::Unavailable(why)) => {
                    let most = PAUSE_MAX.as_secs();
                    let message = format!("{why}; next try within {most} s");
                    tried.waits = Some((Reason::Referencing, message));
                }
            }
        }
    }
}

/// The first tag that could not be set, in an earlier try.
fn has_failed(object: &PromotionRequest) -> Option<String> {
    let failed = |image: &&api::ImageStatus| {
        let reference = image.reference.as_ref();
        reference.is_some_and(|r| r.state == ReferenceState::Failed.as_str())
    };
    let status = object.status.as_ref()?;
    let index = status.images.iter().position(|image| failed(&image))?;
    let tag = object.spec.images.get(index)?.image_stream_tag.clone();
    tag.map(|tag| format!("{tag} could not be set; see the controller's log"))
}
