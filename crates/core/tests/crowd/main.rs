//! What one event costs does not grow with the requests that are known.
#![allow(clippy::expect_used, missing_docs)]

mod crowd;

use crowd::{Crowd, cost};

const FEW: u64 = 8_000;
const MANY: u64 = 8 * FEW;
/// Among [`MANY`] an event may be so many times as dear as among [`FEW`]. A scan of all of them makes it eight times as dear.
const GROWTH: u32 = 4;
const EVENTS: u64 = 800;

#[test]
fn an_event_costs_no_more_among_many_requests() {
    let (few, many) = (Crowd::of(FEW), Crowd::of(MANY));
    let holds = |what: &str, event: &dyn Fn(&mut Crowd, u64)| {
        // The cheapest of three: whatever else the machine does makes it dearer.
        let cheapest = |crowd, count| {
            let costs = (0..3).map(|_| cost(crowd, count, EVENTS, event));
            costs.min().expect("three")
        };
        let (few, many) = (cheapest(&few, FEW), cheapest(&many, MANY));
        println!("{what}: {few:?} among {FEW}, {many:?} among {MANY}");
        assert!(many < few * GROWTH, "{what}: {few:?}, then {many:?}");
    };
    holds("at work", &Crowd::work);
    holds("heard of", &Crowd::hear_of);
    holds("ended", &Crowd::end);
}
