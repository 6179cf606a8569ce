//! The world that controllers live in: it steps them in turn, decides when what they send arrives and whether they hear of it, and lets
//! faults happen.
//!
//! In: a start, what users ask for, faults. Out: a log of all that happened, and what the monitors say. Everything follows from the seed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use jiff::Timestamp;
use quaylike::Digest;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::api_server::{Answer, ApiServer, HOME, REQUESTS, Watch, failure};
use super::draws::Draws;
use super::faults::{Act, Fault, Moment, Role, label, tag};
use super::monitors::{Monitors, TagWrite};
use super::process::{Options, Outgoing, Process, Reply, Server, show_world_clocks};
use super::registries::{FLOATS, REPOSITORY, Registries};

/// How far all processes go before the next one's turn, while there is traffic, and while there is none.
const STEP: Duration = Duration::from_millis(10);
const IDLE_STEP: Duration = Duration::from_millis(50);
/// How long a request, and an answer, is on its way, in milliseconds.
const WAY: (u64, u64) = (1, 12);
/// How long a process is gone before it is started anew.
const AGAIN: Duration = Duration::from_secs(2);

/// What is going to happen.
enum Due {
    Arrive(Box<Call>),
    Answer(oneshot::Sender<Reply>, Reply),
    Start(String),
    Wake(String),
    Ask(Value),
    Edit(String, Edit),
    /// The operator lets a ConfigMap say something.
    Say(&'static Map, String),
}

/// What the operator says in a ConfigMap.
pub struct Map {
    pub name: &'static str,
    key: &'static str,
}

pub static FREEZES: Map = Map {
    name: "promotion-controller-freezes",
    key: "freezes",
};
static PAUSED: Map = Map {
    name: "promotion-controller",
    key: "paused",
};

/// What a user does to a request for promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    Suspend(bool),
    Cancel,
    Delete,
    /// Its gates are removed.
    Open,
    /// A newer version has taken it to a phase that this one does not know, or back to the one that it was in.
    Newer(bool),
}

/// A request on its way.
struct Call {
    process: String,
    label: &'static str,
    nth: u64,
    server: Server,
    request: Request<Bytes>,
    reply: oneshot::Sender<Reply>,
    write: Option<TagWrite>,
    /// The Lease that its process would hold.
    lease: String,
    refused: Option<u16>,
    unanswered: bool,
}

/// Whom and what a request is about, and who sent it.
struct Subject {
    process: String,
    server: Server,
    request: Option<String>,
    float: String,
}

/// A process that stands still.
struct Still {
    since: Duration,
    sleeps: bool,
}

struct OpenWatch {
    process: String,
    watch: Watch,
    lines: mpsc::UnboundedSender<Bytes>,
    ends: Duration,
    /// Nothing is told before.
    next: Duration,
    told: u64,
}

/// What happened how often.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub steps: u64,
    pub calls: u64,
    /// Faults, by what happened.
    pub faults: BTreeMap<String, u64>,
}

pub struct World {
    pub now: Duration,
    pub api: ApiServer,
    pub registries: Registries,
    pub monitors: Monitors,
    pub log: Vec<String>,
    pub counts: Counts,
    draws: Draws,
    processes: Vec<Process>,
    places: BTreeMap<String, (Options, Duration, u64)>,
    still: BTreeMap<String, Still>,
    queue: BTreeMap<(Duration, u64), Due>,
    queued: u64,
    watches: Vec<OpenWatch>,
    ordinals: BTreeMap<String, u64>,
    faults: Vec<Fault>,
    /// Until when a process does not reach a server, or nobody does.
    cut: BTreeMap<(String, bool), Duration>,
    /// Until when tags are read late, and how late.
    lags: Option<(Duration, Duration)>,
    /// Until when nobody may write a float.
    forbidden: BTreeMap<String, Duration>,
    /// Whoever waits for an answer that never comes.
    unanswered: Vec<oneshot::Sender<Reply>>,
    seen: u64,
    quiet: u32,
}

impl World {
    pub fn new(seed: u64, faults: Vec<Fault>) -> Self {
        show_world_clocks(Duration::ZERO);
        Self {
            now: Duration::ZERO,
            api: ApiServer::default(),
            registries: Registries::new(),
            monitors: Monitors::default(),
            log: Vec::new(),
            counts: Counts::default(),
            draws: Draws(seed),
            processes: Vec::new(),
            places: BTreeMap::new(),
            still: BTreeMap::new(),
            queue: BTreeMap::new(),
            queued: 0,
            watches: Vec::new(),
            ordinals: BTreeMap::new(),
            faults,
            cut: BTreeMap::new(),
            lags: None,
            forbidden: BTreeMap::new(),
            unanswered: Vec::new(),
            seen: 0,
            quiet: 0,
        }
    }

    /// Lets a controller run at a place from `at` on, for ever: whenever it ends, it is started anew.
    pub fn settle(&mut self, place: &str, options: &Options, ahead: Duration, at: Duration) {
        self.places
            .insert(place.into(), (options.clone(), ahead, 0));
        self.queue(at, Due::Start(place.into()));
    }

    /// A user asks for a promotion.
    pub fn ask(&mut self, at: Duration, object: Value) {
        self.queue(at, Due::Ask(object));
    }

    /// A user changes a request for promotion.
    pub fn edit(&mut self, at: Duration, name: &str, edit: Edit) {
        self.queue(at, Due::Edit(name.into(), edit));
    }

    /// Whether something is still going to happen that no controller does.
    pub fn is_scripted(&self) -> bool {
        let soon = self.now + Duration::from_secs(1);
        let script = |(at, due): (Duration, &Due)| match due {
            Due::Wake(_) | Due::Ask(_) | Due::Edit(..) | Due::Say(..) => true,
            Due::Arrive(_) | Due::Answer(..) => at > soon,
            Due::Start(_) => false,
        };
        let mut queue = self.queue.iter().map(|((at, _), due)| (*at, due));
        queue.any(script) || !self.still.is_empty()
    }

    /// Faults that have not happened.
    pub fn faults_left(&self) -> &[Fault] {
        &self.faults
    }

    fn queue(&mut self, at: Duration, due: Due) {
        self.queued += 1;
        self.queue.insert((at, self.queued), due);
    }

    pub fn note(&mut self, what: &str) {
        self.log
            .push(format!("{:.3} {what}", self.now.as_secs_f64()));
    }

    /// The next of a series.
    fn ordinal(&mut self, of: String) -> u64 {
        let ordinal = self.ordinals.entry(of).or_default();
        *ordinal += 1;
        *ordinal
    }

    /// Goes on a little.
    pub fn step(&mut self) {
        self.counts.steps += 1;
        let to = self.now + if self.quiet < 5 { STEP } else { IDLE_STEP };
        let mut sent = Vec::new();
        for process in &self.processes {
            if !self.still.contains_key(&process.name) {
                process.run_until(to);
                let lease = process.options.home.clone();
                let name = process.name.clone();
                sent.extend(
                    process
                        .sent()
                        .into_iter()
                        .map(|(at, out)| (at, name.clone(), lease.clone(), out)),
                );
            }
        }
        self.quiet = if sent.is_empty() { self.quiet + 1 } else { 0 };
        sent.sort_by_key(|(at, ..)| *at);
        for (at, process, lease, out) in sent {
            self.now = self.now.max(at);
            self.send(&process, &lease, out);
        }
        while let Some((&(at, number), _)) = self.queue.first_key_value() {
            if at > to {
                break;
            }
            self.now = self.now.max(at);
            show_world_clocks(self.now);
            if let Some(due) = self.queue.remove(&(at, number)) {
                self.happen(due);
            }
        }
        self.now = to;
        show_world_clocks(to);
        self.tell_watches();
        self.bury();
    }

    /// Takes a request over from its process.
    fn send(&mut self, process: &str, lease: &str, out: Outgoing) {
        let Outgoing {
            server,
            request,
            reply,
            ..
        } = out;
        let label = label(server, &request);
        self.counts.calls += 1;
        let nth = self.ordinal(label.into());
        let own = self.ordinal(format!("{process} {label}"));
        let way = format!("{process} {label} on its way");
        let way = Duration::from_millis(self.draws.within(&way, own, WAY));
        let writes = [Method::PUT, Method::DELETE].contains(request.method());
        let write = (server == Server::Registry && writes)
            .then(|| self.tag_write(process, &request))
            .flatten();
        if let Some(write) = &write {
            self.monitors.sent(write, &self.api, self.now);
        }
        let subject = self.subject(process, server, &request, write.as_ref());
        let mut call = Call {
            process: process.into(),
            label,
            nth,
            server,
            request,
            reply,
            write,
            lease: lease.into(),
            refused: None,
            unanswered: false,
        };
        let mut arrives = Some(self.now + way);
        let mut acts = Vec::new();
        for act in self.due(label, Moment::Sent, nth) {
            match act {
                Act::LoseRequest => arrives = None,
                Act::LoseAnswer => call.unanswered = true,
                Act::Late(late) => {
                    arrives = Some(self.now + late);
                    call.unanswered = true;
                }
                Act::Refuse(status) => call.refused = Some(status),
                Act::Slow(slow) => arrives = arrives.map(|at| at + slow),
                act => acts.push(act),
            }
        }
        if self.is_cut(process, server) {
            arrives = None;
        }
        if self.is_cut("", server) {
            self.note(&format!("{process} {label} {nth}: no connection"));
            self.queue(self.now + way, Due::Answer(call.reply, Reply::NotConnected));
        } else if let Some(at) = arrives {
            self.queue(at, Due::Arrive(Box::new(call)));
        } else {
            self.note(&format!("{process} {label} {nth}: lost"));
            self.unanswered.push(call.reply);
        }
        for act in acts {
            self.act(act, &subject);
        }
    }

    fn subject(
        &self,
        process: &str,
        server: Server,
        sent: &Request<Bytes>,
        write: Option<&TagWrite>,
    ) -> Subject {
        let request = about(sent, write);
        let named = || {
            let name = request.as_ref()?;
            let namespace = self.api.namespace_of(REQUESTS, name);
            let object = self.api.get(REQUESTS, &namespace, name)?;
            let float = object["spec"]["images"][0]["float"].as_str()?;
            Some(float.rsplit_once(':')?.1.to_owned())
        };
        let float = tag(sent).map(|tag| Role::of(tag).1.to_owned());
        Subject {
            process: process.into(),
            server,
            float: float.or_else(named).unwrap_or_else(|| "f0".into()),
            request,
        }
    }

    fn tag_write(&self, process: &str, request: &Request<Bytes>) -> Option<TagWrite> {
        let tag = tag(request)?.to_owned();
        let puts = *request.method() == Method::PUT;
        let digest = puts.then(|| Digest::of(request.body()));
        let (role, float) = Role::of(&tag);
        let at_work = Monitors::at_work(&self.api, float);
        // Prune tags and `__pre` hold the image of an earlier one, and so does a float that is taken back.
        let back = at_work
            .as_ref()
            .is_some_and(|name| self.monitors.takes_back(name));
        let owner = match digest {
            Some(digest) if !back && !matches!(role, Role::Prune | Role::Pre) => {
                self.monitors.owner(digest).map(str::to_owned)
            }
            _ => at_work,
        };
        Some(TagWrite {
            process: process.into(),
            tag,
            digest,
            sent: self.now,
            owner,
        })
    }

    /// The faults that hang on this event; they happen once.
    fn due(&mut self, on: &str, moment: Moment, nth: u64) -> Vec<Act> {
        let (due, left) = std::mem::take(&mut self.faults)
            .into_iter()
            .partition(|fault| (fault.on, fault.moment, fault.nth) == (on, moment, nth));
        self.faults = left;
        let due: Vec<Fault> = due;
        for fault in &due {
            let name = format!("{:?}", fault.act);
            let name = name.split('(').next().unwrap_or_default().to_owned();
            *self.counts.faults.entry(name).or_default() += 1;
            self.note(&format!("FAULT {fault:?}"));
        }
        due.into_iter().map(|fault| fault.act).collect()
    }

    fn is_cut(&self, process: &str, server: Server) -> bool {
        let place = process.trim_end_matches(|c: char| c.is_ascii_digit());
        let until = self.cut.get(&(place.to_owned(), server == Server::Api));
        until.is_some_and(|until| *until > self.now)
    }

    /// Lets something happen to a process, or around it.
    fn act(&mut self, act: Act, subject: &Subject) {
        let (process, float) = (subject.process.as_str(), subject.float.as_str());
        let place = process
            .trim_end_matches(|c: char| c.is_ascii_digit())
            .to_owned();
        let api = subject.server == Server::Api;
        match act {
            Act::Kill(again) => self.kill(process, again),
            Act::Stop => {
                let mut processes = self.processes.iter_mut();
                if let Some(process) = processes.find(|one| one.name == process) {
                    process.stop();
                }
            }
            Act::Freeze(_) | Act::Sleep(_) if self.still.contains_key(process) => {}
            Act::Freeze(long) | Act::Sleep(long) => {
                let still = Still {
                    since: self.now,
                    sleeps: matches!(act, Act::Sleep(_)),
                };
                self.still.insert(process.into(), still);
                self.queue(self.now + long, Due::Wake(process.into()));
            }
            Act::Delete => {
                let newest = || {
                    self.api.all(REQUESTS).last()?["metadata"]["name"]
                        .as_str()
                        .map(str::to_owned)
                };
                if let Some(name) = subject.request.clone().or_else(newest) {
                    self.change(&name, Edit::Delete);
                }
            }
            Act::Cut(long) => {
                self.cut.insert((place, api), self.now + long);
            }
            Act::Down(long) => {
                self.cut.insert((String::new(), api), self.now + long);
                if api {
                    self.watches.clear();
                }
            }
            Act::Compact => self.api.compact(),
            Act::Forbid(long) => {
                self.forbidden.insert(float.into(), self.now + long);
                self.monitors.trouble(float);
            }
            Act::Meddle(role, puts) => self.meddle(role, puts, float),
            Act::FreezeFloat(long) => {
                let line = format!("{FLOATS}/{REPOSITORY}:{float} a test\n");
                self.say(&FREEZES, &line);
                self.queue(self.now + long, Due::Say(&FREEZES, String::new()));
            }
            Act::Pause(long) => {
                self.say(&PAUSED, "all");
                self.queue(self.now + long, Due::Say(&PAUSED, String::new()));
            }
            Act::Stale(lag) => self.lags = Some((self.now + 2 * lag, lag)),
            Act::LoseRequest | Act::LoseAnswer | Act::Late(_) | Act::Slow(_) | Act::Refuse(_) => {}
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Arrive(call) => self.arrive(*call),
            Due::Answer(reply, answer) => {
                let _ = reply.send(answer);
            }
            Due::Start(place) => self.start(&place),
            Due::Wake(name) => self.wake(&name),
            Due::Ask(object) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                self.note(&format!("a user asks for {name}"));
                self.api.create(REQUESTS, object, Timestamp::now());
                self.look_at_changes();
            }
            Due::Edit(name, edit) => self.change(&name, edit),
            Due::Say(map, text) => self.say(map, &text),
        }
    }

    /// Somebody else puts an image to a tag of a float, or deletes it. Our pins they leave; a name for one they may take first.
    fn meddle(&mut self, role: Role, puts: bool, float: &str) {
        let stamp = Timestamp::now().strftime("%Y%m%d%H%M%S").to_string();
        let tag = role.tag(float, &stamp);
        if role == Role::Prune && (!puts || self.registries.tag(&tag).is_some()) {
            return;
        }
        self.note(&format!("somebody else writes {tag}"));
        let image = format!("theirs at {:?}", self.now);
        let digest = self.registries.meddle(&tag, puts.then_some(image.as_str()));
        self.monitors.meddled(&tag, digest, self.now);
    }

    /// The operator lets a ConfigMap say something.
    fn say(&mut self, map: &Map, text: &str) {
        self.note(&format!("the operator says in {}: {text}", map.name));
        if self.api.get("configmaps", HOME, map.name).is_none() {
            let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": map.name, "namespace": HOME}});
            self.api.create("configmaps", object, Timestamp::now());
        }
        self.api.edit("configmaps", HOME, map.name, |object| {
            object["data"] = json!({map.key: text});
        });
        self.look_at_changes();
    }

    fn change(&mut self, name: &str, edit: Edit) {
        self.note(&format!("a user: {edit:?} {name}"));
        let namespace = &self.api.namespace_of(REQUESTS, name);
        match edit {
            Edit::Delete => self.api.delete(REQUESTS, namespace, name),
            Edit::Suspend(on) => self.api.edit(REQUESTS, namespace, name, |object| {
                object["spec"]["suspend"] = on.into();
            }),
            Edit::Newer(on) => self.api.edit(REQUESTS, namespace, name, |object| {
                for image in object["status"]["images"]
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                {
                    if on {
                        image["was"] = image["phase"].clone();
                        image["phase"] = "Signing".into();
                    } else {
                        image["phase"] = image["was"].clone();
                        image["was"] = Value::Null;
                    }
                }
            }),
            Edit::Open => self.api.edit(REQUESTS, namespace, name, |object| {
                object["spec"]["gates"] = json!([]);
            }),
            Edit::Cancel => self.api.edit(REQUESTS, namespace, name, |object| {
                object["spec"]["cancel"] = true.into();
            }),
        }
        self.look_at_changes();
    }

    fn start(&mut self, place: &str) {
        let Some((options, ahead, lives)) = self.places.get_mut(place) else {
            return;
        };
        *lives += 1;
        let name = format!("{place}{lives}");
        let process = Process::start(&name, options, *ahead, self.now);
        show_world_clocks(self.now);
        self.processes.push(process);
        self.note(&format!("{name} starts"));
    }

    fn wake(&mut self, name: &str) {
        let Some(still) = self.still.remove(name) else {
            return;
        };
        let stood = self.now.saturating_sub(still.since);
        let mut processes = self.processes.iter_mut();
        if let Some(process) = processes.find(|process| process.name == name) {
            process.wake(stood, still.sleeps);
            self.note(&format!("{name} wakes after {stood:?}"));
        }
    }

    fn kill(&mut self, name: &str, again: Duration) {
        let Some(index) = self
            .processes
            .iter()
            .position(|process| process.name == name)
        else {
            return;
        };
        let process = self.processes.remove(index);
        let place = process.place().to_owned();
        process.kill();
        self.note(&format!("{name} is killed"));
        self.gone(name, &place, again);
    }

    /// What a process that is gone had on its way arrives, or not.
    fn gone(&mut self, name: &str, place: &str, again: Duration) {
        let of = |due: &Due| matches!(due, Due::Arrive(call) if call.process == name && !call.unanswered);
        let keys = self
            .queue
            .iter()
            .filter(|(_, due)| of(due))
            .map(|(key, _)| *key);
        for (nth, key) in (0..).zip(keys.collect::<Vec<_>>()) {
            if self.draws.percent(&format!("{name} leaves"), nth, 50) {
                self.queue.remove(&key);
            }
        }
        self.watches.retain(|watch| watch.process != name);
        self.still.remove(name);
        self.queue(self.now + again, Due::Start(place.into()));
    }

    /// Processes that have ended by themselves.
    fn bury(&mut self) {
        let mut index = 0;
        while let Some(process) = self.processes.get_mut(index) {
            if self.still.contains_key(&process.name) {
                index += 1;
                continue;
            }
            let Some(ended) = process.ended() else {
                index += 1;
                continue;
            };
            let process = self.processes.remove(index);
            let (name, place) = (process.name.clone(), process.place().to_owned());
            process.kill();
            let how = ended.map_or_else(|why| why, |()| "as asked".into());
            self.note(&format!("{name} has ended: {how}"));
            self.gone(&name, &place, AGAIN);
        }
    }

    fn arrive(&mut self, call: Call) {
        let Call {
            process,
            label,
            nth,
            server,
            request,
            reply,
            write,
            lease,
            mut refused,
            unanswered,
        } = call;
        let subject = self.subject(&process, server, &request, write.as_ref());
        let written = write
            .as_ref()
            .and_then(|write| self.forbidden.get(&write.tag));
        if written.is_some_and(|until| *until > self.now) {
            refused = Some(403);
        }
        let answer = match (refused, server) {
            (Some(status), Server::Api) => Some(Answer::Whole(failure(
                status,
                "Fault",
                "a fault",
                &Value::Null,
            ))),
            (Some(status), Server::Registry) => Some(Answer::Whole(refusal(status))),
            (None, Server::Api) => Some(self.api.answer(&request, &lease, Timestamp::now())),
            (None, Server::Registry) => self.serve(&process, label, request, write),
        };
        self.look_at_changes();
        let status = match &answer {
            Some(Answer::Whole(answer)) => answer.status().as_u16(),
            Some(Answer::Watch(_)) => 200,
            None => 0,
        };
        let about = subject.request.as_deref().unwrap_or_default();
        self.note(&format!("{process} {label} {nth} {about} {status}"));
        let own = self.ordinal(format!("{process} {label} answers"));
        let back = self
            .draws
            .within(&format!("{process} {label} back"), own, WAY);
        let mut at = self.now + Duration::from_millis(back);
        let mut lost = unanswered;
        let landed = self.ordinal(format!("{label} has landed"));
        let acts = self.due(label, Moment::Landed, landed);
        for act in &acts {
            if let Act::Slow(slow) = act {
                at += *slow;
            }
        }
        lost |= acts.contains(&Act::LoseAnswer) || self.is_cut(&process, server);
        match answer {
            _ if lost => self.unanswered.push(reply),
            Some(Answer::Whole(answer)) => self.queue(at, Due::Answer(reply, Reply::Whole(answer))),
            Some(Answer::Watch(watch)) => {
                let (lines, told) = mpsc::unbounded_channel();
                self.queue(at, Due::Answer(reply, Reply::Stream(told)));
                self.watches.push(OpenWatch {
                    process: process.clone(),
                    ends: self.now + Duration::from_secs(watch.seconds),
                    watch,
                    lines,
                    next: at,
                    told: 0,
                });
            }
            None => self.queue(at, Due::Answer(reply, Reply::Closed)),
        }
        for act in acts {
            self.act(act, &subject);
        }
    }

    /// A registry answers.
    fn serve(
        &mut self,
        process: &str,
        label: &str,
        request: Request<Bytes>,
        write: Option<TagWrite>,
    ) -> Option<Answer> {
        let before = write
            .as_ref()
            .and_then(|write| self.registries.tag(&write.tag));
        if let (None, "look", Some(tag)) = (&write, label, tag(&request)) {
            let lags = self.lags.filter(|(until, _)| *until > self.now);
            // No tag was other before there was one.
            let lag = lags.map_or(Duration::ZERO, |(_, lag)| lag.min(self.now));
            if !lag.is_zero() {
                self.registries.lag(lag);
            }
            self.monitors
                .looked(process, tag, self.now.saturating_sub(lag));
        }
        let answer = self.registries.answer(request);
        let done = answer
            .as_ref()
            .is_some_and(|answer| answer.status().is_success());
        if let Some(write) = write.filter(|_| done) {
            self.note(&format!(
                "{process} has put {} = {}",
                write.tag,
                write
                    .digest
                    .map_or("nothing".into(), |digest| self.named(digest))
            ));
            self.monitors
                .landed(&write, before, &self.registries, self.now);
        }
        answer.map(Answer::Whole)
    }

    /// A digest as the log has it.
    fn named(&self, digest: Digest) -> String {
        let text = digest.to_string();
        self.monitors.owner(digest).map_or(text, str::to_owned)
    }

    /// Shows the monitors what has changed at the API server.
    fn look_at_changes(&mut self) {
        for change in self.api.changes_after(self.seen).to_vec() {
            self.monitors.changed(&change, self.now);
            if change.key.0 == REQUESTS {
                let shown = change.after.as_ref().map(|after| shown(&after["status"]));
                self.note(&format!(
                    "{} is {}",
                    change.key.2,
                    shown.unwrap_or_else(|| "gone".into())
                ));
            }
        }
        self.seen = self.api.version();
    }

    fn tell_watches(&mut self) {
        let mut watches = std::mem::take(&mut self.watches);
        watches.retain_mut(|open| {
            if open.lines.is_closed() {
                return false;
            }
            if self.is_cut(&open.process, Server::Api) {
                return true;
            }
            let ends = open.ends <= self.now;
            if open.next <= self.now {
                for line in self.api.tell(&mut open.watch) {
                    open.told += 1;
                    let name = format!("{} is told", open.process);
                    let lag = self.draws.within(&name, open.told, (0, 60));
                    open.next = self.now + Duration::from_millis(lag);
                    let _ = open.lines.send(line.into());
                }
            }
            if ends {
                let _ = open.lines.send(ApiServer::bookmark(&open.watch).into());
            }
            !ends
        });
        self.watches = watches;
    }
}

/// The request for promotion that a request is about.
fn about(request: &Request<Bytes>, write: Option<&TagWrite>) -> Option<String> {
    match request.uri().path().split_once("/promotionrequests/") {
        Some((_, rest)) => rest.split('/').next().map(str::to_owned),
        None => write?.owner.clone(),
    }
}

/// A status in a few words.
fn shown(status: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let images = status["images"].as_array().into_iter().flatten();
    let images =
        images.map(|image| format!("{}/{}", word(&image["phase"]), word(&image["reason"])));
    let images: Vec<String> = images.collect();
    let committed = if status["committed"] == true {
        " committed"
    } else {
        ""
    };
    let began = if status["startTime"].is_null() {
        ""
    } else {
        " begun"
    };
    format!(
        "{} [{}]{began}{committed}",
        word(&status["phase"]),
        images.join(" ")
    )
}

fn refusal(status: u16) -> Response<Bytes> {
    let (code, message) = match status {
        400 => ("MANIFEST_INVALID", "manifest references unknown blob"),
        403 => ("DENIED", "nobody may write this tag"),
        404 => ("MANIFEST_UNKNOWN", "manifest unknown"),
        _ => ("UNKNOWN", "a fault"),
    };
    let body = json!({"errors": [{"code": code, "message": message}]});
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
}
