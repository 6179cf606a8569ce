//! How fast `promote` is as it paces itself: on registries without a limit, and behind the buckets of quay's proxy.
//!
//! In: the size. Out: a row for each kind of limit, its own time for the requests sent, and how many were answered 429. Guaranteed: each
//! row begins on a registry of its own and ends with a look at every tag.

use std::time::Duration;

use quaylike::Shape;
use serde_json::json;

use crate::promotion;
use crate::report::{Report, Table, method, seconds};
use crate::served::Served;
use crate::testbed::RunDir;
use crate::tls::Authority;

const PATIENCE: Duration = Duration::from_mins(4);
/// quay's rate on HTTP/1.1; on HTTP/2 it is ten times that.
const QUAY: u32 = 50;
/// How much longer than the bucket's own time it may take.
const FACTOR: f64 = 1.15;
/// Of a hundred floats where there is no limit.
const UNLIMITED: f64 = 3.0;

/// What limits the rate.
#[derive(Clone, Copy, PartialEq)]
enum Bucket {
    None,
    Http1,
    Http2,
}

pub async fn run(report: &mut Report) {
    let floats = if report.quick { 10 } else { 100 };
    method(&format!(
        "`promote` with its default flags: {floats} existing floats, 4 blobs mounted from another repository, 10 ms added to each \
         request. The buckets are those of quay's proxy: manifests and blobs together, {QUAY} requests a second on HTTP/1.1, ten times \
         that on a connection of HTTP/2 (tag PUTs have connections of their own, of HTTP/1.1). A bucket's own time is what it takes for \
         the requests that were sent, at its rate; of two, the longer."
    ));
    let mut table = Table::new(&[
        "registry",
        "time",
        "the bucket's own",
        "ratio",
        "limit",
        "requests",
        "answered 429",
        "limit",
    ]);
    for (name, bucket) in [
        ("no limit", Bucket::None),
        ("one bucket, HTTP/1.1", Bucket::Http1),
        ("quay's buckets, HTTP/2", Bucket::Http2),
    ] {
        row(report, &mut table, (name, bucket), floats).await;
    }
    table.print();
}

async fn row(report: &mut Report, table: &mut Table, what: (&str, Bucket), floats: usize) {
    let (name, bucket) = what;
    let rate = if bucket == Bucket::None { 0 } else { QUAY };
    let served = Served::start(&json!({"latency_ms": 10, "rate": rate})).await;
    let promotions = promotion::seed(&served, Shape::Oci, floats).await;
    let folder = RunDir::create("rate").unwrap();
    promotion::log_in(folder.path(), served.host(), None);
    let task = if bucket == Bucket::Http2 {
        let authority = Authority::new(folder.path());
        let host = authority.before(served.host().parse().unwrap()).await;
        let pairs = promotion::pairs(&host, &promotions);
        let ca = format!("--registry-ca={host}=ca.crt");
        let allowed = format!("--allow-registry={host}");
        promotion::promote(folder.path(), &pairs, &[], &[&ca, &allowed])
    } else {
        let pairs = promotion::pairs(served.host(), &promotions);
        promotion::promote(folder.path(), &pairs, &[served.host()], &[])
    };
    served.reset().await;
    let taken = task.run(folder.path(), PATIENCE).await;
    assert!(taken.success, "{name}: {}", taken.stderr);
    let (asked, (puts, _)) = (served.asked().await, served.tag_writes(0).await);
    let tags = served.snapshot().await;
    tags.and_then(|tags| promotion::check(&tags, &promotions))
        .unwrap();
    let (sent, puts, refused) = (
        count(asked.requests),
        count(puts.len()),
        count(asked.refused),
    );
    let quay = f64::from(QUAY);
    let own = match bucket {
        Bucket::None => None,
        Bucket::Http1 => Some(sent / quay),
        Bucket::Http2 => Some(f64::max(puts / quay, (sent - puts) / (10.0 * quay))),
    };
    let took = taken.wall.as_secs_f64();
    let ratio = own.map(|own| took / own);
    let within = ratio.map_or(took <= UNLIMITED, |ratio| ratio <= FACTOR);
    let limit = ratio.map_or(format!("{UNLIMITED} s"), |_| FACTOR.to_string());
    let part = 100.0 * refused / sent;
    table.row([
        name.to_owned(),
        seconds(taken.wall),
        own.map(|own| seconds(Duration::from_secs_f64(own)))
            .unwrap_or_default(),
        ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        report.held(&format!("{name}: {took:.2} s"), within, &limit),
        asked.requests.to_string(),
        format!("{part:.1} %"),
        report.held(&format!("{name}: {part:.1} % 429"), part <= 1.0, "1 %"),
    ]);
}

#[allow(clippy::cast_precision_loss, reason = "a few thousand")]
fn count(number: usize) -> f64 {
    number as f64
}
