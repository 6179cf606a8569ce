//! A job that is ended early, or whose API server goes away.

use std::path::PathBuf;
use std::time::Instant;

use quaylike::{GateSpec, Matcher, RequestKind};

use super::{Ended, Job, account, latch, named};
use crate::ground::{Ground, PATIENCE, alone};
use crate::relay::{Call, Fault, Relay};
use crate::testbed::Signal;
use crate::testbed::stage::{LOOK, Stage, phase};

/// A promotion of one image, about to be asked for.
struct Asked {
    ground: Ground,
    kubeconfig: PathBuf,
    old: String,
    new: String,
    image: String,
}

impl Asked {
    async fn on(ground: Ground) -> Self {
        let kubeconfig = account(&ground.stage).await;
        let old = ground.old("ocp_4.21_f");
        let (new, source) = ground.source("f");
        let image = format!("{source}={}", ground.float("ocp_4.21_f"));
        Self {
            ground,
            kubeconfig,
            old,
            new,
            image,
        }
    }

    fn assert_promoted(&self, ended: &Ended) {
        assert_eq!(ended.code, 0, "{}", ended.log);
        let reference = format!(
            "{}/ci@{} ocp/4.21:f\n",
            self.ground.registry.host(),
            self.new
        );
        assert!(ended.out.ends_with(&reference), "{}", ended.out);
        let history = self.ground.history("ocp_4.21_f");
        assert_eq!(history, [self.old.clone(), self.new.clone()]);
        self.ground.assert_sound();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ended_before_the_commit_cancels_its_request_and_no_float_moves() {
    let asked = Asked::on(Ground::new("jobterm").await).await;
    let ground = &asked.ground;
    let _controller = ground.controller(&[]);
    let source = Matcher::kind(RequestKind::Manifest).method("GET");
    let gate = ground
        .registry
        .gate(GateSpec::before(source.repository("src/f")));
    let mut job = Job::start(&ground.stage, &asked.kubeconfig, "1", &[&asked.image]).await;
    ground.stage.reached(&gate).await;
    // As coreutils' timeout does.
    job.process.signal(Signal::Terminate);
    job.until_said("setting spec.cancel").await;
    job.process.signal(Signal::Terminate);
    let ended = job.ended().await;
    ended.assert_failed("Cancelled");
    assert!(ended.log.contains("setting spec.cancel"), "{}", ended.log);
    assert!(ended.log.contains("ended as Cancelled"), "{}", ended.log);
    let left = ground.stage.get(&named("1")).await;
    assert!(left.spec.cancel);
    assert_eq!(phase(&left), "Cancelled");
    assert_eq!(ended.object()["status"]["phase"], "Cancelled");
    let junit = ended.junit();
    assert!(junit.contains("<failure type=\"Cancelled\""), "{junit}");
    assert_eq!(
        ground.history("ocp_4.21_f"),
        std::slice::from_ref(&asked.old)
    );
    gate.open();
    ground.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ended_after_the_commit_sees_its_promotion_through_or_says_that_it_goes_on() {
    let asked = Asked::on(Ground::new("jobdone").await).await;
    let ground = &asked.ground;
    let _controller = ground.controller(&[]);
    let gate = ground.registry.gate(latch("ocp_4.21_f"));
    let image = asked.image.as_str();
    let mut job = Job::start(&ground.stage, &asked.kubeconfig, "1", &[image]).await;
    ground.stage.reached(&gate).await;
    let hasty = ["--cancel-grace=1s", image];
    let mut hasty = Job::start(&ground.stage, &asked.kubeconfig, "1", &hasty).await;
    hasty.until_said(": BackedUp").await;
    hasty.process.signal(Signal::Terminate);
    let hasty = hasty.ended().await;
    hasty.assert_failed("Interrupted");
    let goes_on = "is committed and runs to its end without this job";
    assert!(hasty.log.contains(goes_on), "{}", hasty.log);

    job.process.signal(Signal::Terminate);
    job.until_said("setting spec.cancel").await;
    gate.open();
    let ended = job.ended().await;
    let ran = "it was committed already and ran to its end";
    assert!(ended.log.contains(ran), "{}", ended.log);
    asked.assert_promoted(&ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_on_through_watches_that_break_and_expire() {
    let asked = Asked::on(Ground::new("jobexpired").await).await;
    let ground = &asked.ground;
    let _controller = ground.controller(&[]);
    let relay = Relay::start(ground.stage.plane, &ground.stage.folder).await;
    let gate = ground.registry.gate(latch("ocp_4.21_f"));
    let job = Job::start(&ground.stage, &relay.kubeconfig, "1", &[&asked.image]).await;
    ground.stage.reached(&gate).await;
    job.until_said(": BackedUp").await;
    relay.add(Call::Watch, Fault::Expired, 1, 2);
    relay.drop_watches();
    let end = Instant::now() + PATIENCE;
    while relay.faults(Call::Watch) < 2 {
        let seen = relay.seen(Call::Watch);
        assert!(Instant::now() < end, "{seen:?}\n{}", job.log());
        tokio::time::sleep(LOOK).await;
    }
    gate.open();
    asked.assert_promoted(&job.ended().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_an_api_server_that_is_away_when_it_begins_and_while_it_waits() {
    let (_turn, plane) = alone().await;
    let asked = Asked::on(Ground::of(Stage::on(plane, "jobaway").await).await).await;
    let ground = &asked.ground;
    let _controller = ground.controller(&[]);
    let gate = ground.registry.gate(latch("ocp_4.21_f"));
    plane.kill_apiserver();
    let job = Job::start(&ground.stage, &asked.kubeconfig, "1", &[&asked.image]).await;
    job.until_said("asking again").await;
    plane.start_apiserver().await.unwrap();
    ground.stage.reached(&gate).await;
    job.until_said(": BackedUp").await;
    plane.restart_apiserver().await.unwrap();
    gate.open();
    asked.assert_promoted(&job.ended().await);
}
