//! What one event costs the coordinator, and what it keeps of each request, however many are unfinished.

use crate::crowd::{Crowd, cost};
use crate::report::{Report, Table, held_bytes, method};

/// An event among a hundred times as many requests may cost so many times as much: trees are deeper, and caches are smaller.
const GROWTH: u32 = 10;

pub fn run(report: &mut Report) {
    let counts: &[u64] = if report.quick {
        &[100, 1_000]
    } else {
        &[100, 1_000, 10_000, 100_000]
    };
    method(
        "So many unfinished requests of one image each, one in eight at work, four of five of one namespace. Processor time of the \
         coordinator and of the log of tag writes alone, the mean of the newest: a request that is heard of again; one at work from its \
         load to its release, with three tag writes; one that ends. Memory is that of the process.",
    );
    let mut table = Table::new(&[
        "requests",
        "heard of",
        "at work",
        "ended",
        "limit",
        "memory of each",
    ]);
    // What the first one takes once.
    let mut crowds = vec![Crowd::of(1_000)];
    let mut first = None;
    for &count in counts {
        let before = held_bytes();
        let crowd = Crowd::of(count);
        let each = (held_bytes() - before) / count;
        let events = 80.min(count / 8);
        let costs = [
            cost(&crowd, count, events, Crowd::hear_of),
            cost(&crowd, count, events, Crowd::work),
            cost(&crowd, count, events, Crowd::end),
        ];
        let first = *first.get_or_insert(costs);
        let within = (costs.iter().zip(first)).all(|(cost, first)| *cost <= first * GROWTH);
        let limit = report.held(
            &format!("events among {count}"),
            within,
            &format!("{GROWTH} times"),
        );
        let [heard, work, ended] = costs.map(|cost| format!("{} µs", cost.as_micros()));
        table.row([
            count.to_string(),
            heard,
            work,
            ended,
            limit,
            format!("{each} bytes"),
        ]);
        // Kept, so that the next one reuses nothing of it.
        crowds.push(crowd);
    }
    table.print();
}
