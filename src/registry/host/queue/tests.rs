#![allow(clippy::unwrap_used)]
use std::time::Duration;

use tokio::time::{advance, sleep, timeout};

use super::*;
use crate::registry::host::limits::{Connection, FlowKey, Protocol};
use crate::turn::{Turn, Turns};

fn queue(qps: u32, concurrency: usize) -> Arc<HostQueue> {
    HostQueue::new(Limits {
        rates: Rates { qps, qps_max: qps },
        concurrency,
        backoff_first: Duration::from_secs(1),
        backoff_max: Duration::from_mins(1),
    })
}

const CONTENT: Limit = Limit {
    zone: Zone::Content,
    protocol: None,
    apart: false,
};

fn limit(queue: &Arc<HostQueue>, permit: &Permit) -> bool {
    queue.limited(CONTENT, permit, f64::INFINITY)
}

/// Of a request whose turn comes before those of greater numbers.
fn request(flow: u64) -> Want {
    Want {
        flow: FlowKey {
            namespace: 1,
            request: flow,
        },
        turn: Turns::<()>::new().begin("", usize::try_from(flow).unwrap()),
        places: 1,
        paced: Some(Zone::Content),
        connection: Connection::Shared,
        puts: 0,
        paid: false,
    }
}

fn stream(flow: u64, places: usize) -> Want {
    Want {
        places,
        paced: None,
        ..request(flow)
    }
}

async fn streaming(queue: &Arc<HostQueue>, want: Want) -> Permit {
    queue.acquire_stream(want, "h", &Progress::default()).await
}

/// Requests that a flow sends, each of them for `took`; when the last is done.
fn load(queue: &Arc<HostQueue>, flow: u64, requests: usize, took: Duration) -> Vec<Task> {
    let one = |_| {
        let queue = Arc::clone(queue);
        tokio::spawn(async move {
            let _permit = queue.acquire(request(flow)).await;
            sleep(took).await;
        })
    };
    (0..requests).map(one).collect()
}

type Task = tokio::task::JoinHandle<()>;

async fn ended(tasks: Vec<Task>) -> Duration {
    let start = Instant::now();
    for task in tasks {
        task.await.unwrap();
    }
    start.elapsed()
}

/// Lets tasks run that have something to do now.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_passes_hundreds_that_wait_for_places() {
    let (queue, took) = (queue(0, 4), Duration::from_millis(10));
    let many = load(&queue, 2, 4000, took);
    sleep(took * 20).await;
    let few = ended(load(&queue, 1, 16, took)).await;
    assert!(few <= took * 5, "{few:?}");
    assert_eq!(ended(many).await + few, took * (1004 - 20));
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_passes_hundreds_that_wait_for_the_pacing() {
    let queue = queue(40, 16);
    let many = load(&queue, 2, 400, Duration::ZERO);
    sleep(Duration::from_millis(2510)).await;
    let few = ended(load(&queue, 1, 40, Duration::ZERO)).await;
    assert!(few <= Duration::from_millis(1025), "{few:?}");
    let rest = ended(many).await + few;
    let expected = Duration::from_millis(430 * 25 - 2510);
    assert!(
        rest.abs_diff(expected) < Duration::from_millis(50),
        "{rest:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_rests_on_a_look_goes_first_and_is_paced_afterwards() {
    let queue = queue(4, 3);
    drop(queue.acquire(request(1)).await);
    let waiting = load(&queue, 1, 2, Duration::ZERO);
    settle().await;
    let start = Instant::now();
    let prompt = Want {
        connection: Connection::Prompt,
        ..request(1)
    };
    drop(queue.acquire(prompt).await);
    assert!(start.elapsed().is_zero());
    // Two tokens and the one that is owed, at four a second.
    assert_eq!(ended(waiting).await.as_millis(), 750);
}

#[tokio::test(start_paused = true)]
async fn the_window_halves_when_the_rate_is_limited_and_grows_by_one_for_each_window_of_answers() {
    let queue = queue(0, 16);
    let free = || {
        let mut held = Vec::new();
        let queue = Arc::clone(&queue);
        async move {
            while let Ok(permit) =
                timeout(Duration::from_millis(1), queue.acquire(request(1))).await
            {
                held.push(permit);
            }
            held.len()
        }
    };
    assert_eq!(free().await, 16);
    let limited = async || limit(&queue, &queue.acquire(request(1)).await);
    let together = [
        queue.acquire(request(1)).await,
        queue.acquire(request(1)).await,
    ];
    for permit in together {
        limit(&queue, &permit);
    }
    assert_eq!(free().await, 8);
    for _ in 0..9 {
        queue.served(CONTENT, false);
    }
    assert_eq!(free().await, 9);
    for _ in 0..20 {
        limited().await;
    }
    assert_eq!(free().await, WINDOW_MIN);
    for _ in 0..400 {
        queue.served(CONTENT, false);
    }
    assert_eq!(free().await, 16);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_needs_two_places_is_not_passed_for_ever() {
    let (queue, took) = (queue(0, 3), Duration::from_millis(10));
    let busy = load(&queue, 1, 3000, took);
    settle().await;
    let start = Instant::now();
    drop(streaming(&queue, stream(1, 2)).await);
    assert!(start.elapsed() >= took * 1000);
    // Ahead of others, it is their places that it waits for.
    let more = load(&queue, 3, 3000, took);
    settle().await;
    let start = Instant::now();
    drop(streaming(&queue, stream(2, 2)).await);
    assert!(start.elapsed() <= took * 2, "{:?}", start.elapsed());
    ended(busy).await;
    ended(more).await;
}

#[tokio::test(start_paused = true)]
async fn streams_leave_places_for_requests() {
    let queue = queue(0, 16);
    let mut streams = Vec::new();
    while let Ok(permit) = timeout(Duration::from_millis(1), streaming(&queue, stream(1, 1))).await
    {
        streams.push(permit);
    }
    // Twelve of sixteen, but for what a namespace leaves to others.
    assert_eq!(streams.len(), 9);
    assert!(
        timeout(Duration::from_millis(1), queue.acquire(request(1)))
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn who_has_left_takes_nothing() {
    let queue = queue(40, 3);
    let held: Vec<_> = futures::future::join_all((0..3).map(|_| queue.acquire(request(1)))).await;
    let waiting = load(&queue, 1, 50, Duration::ZERO);
    settle().await;
    for task in waiting {
        task.abort();
    }
    settle().await;
    // Granted and not yet taken: it is given back as well.
    let granted = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { drop(queue.acquire(request(1)).await) }
    });
    settle().await;
    drop(held);
    granted.abort();
    settle().await;
    advance(Duration::from_secs(1)).await;
    assert!(ended(load(&queue, 1, 10, Duration::ZERO)).await.is_zero());
    let state = queue.state.lock();
    assert!(state.is_empty(), "{state:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_not_used_is_anothers() {
    let queue = queue(4, 3);
    drop(queue.acquire(request(1)).await);
    sleep(Duration::from_millis(250)).await;
    queue.acquire(request(1)).await.refund();
    let start = Instant::now();
    drop(queue.acquire(request(1)).await);
    assert!(start.elapsed().is_zero());
}

#[tokio::test(start_paused = true)]
async fn a_namespace_of_many_flows_gets_no_more_than_one_of_few() {
    let (queue, took) = (queue(0, 4), Duration::from_millis(10));
    let mut many = Vec::new();
    for flow in 1..=100 {
        many.extend(load(&queue, flow, 40, took));
    }
    sleep(took * 50).await;
    let other = (0..200).map(|_| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            let want = Want {
                flow: FlowKey {
                    namespace: 2,
                    request: 1000,
                },
                ..request(1000)
            };
            let _permit = queue.acquire(want).await;
            sleep(took).await;
        })
    });
    // 200 at half of four places.
    let few = ended(other.collect()).await;
    assert!(few <= took * 105, "{few:?}");
    ended(many).await;
}

#[tokio::test(start_paused = true)]
async fn slow_streams_give_way_to_a_namespace_that_has_none_and_keep_their_part() {
    let queue = queue(0, 16);
    let slow = |flow: u64| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            loop {
                let permit = streaming(&queue, stream(flow, 1)).await;
                permit.preempted().await;
                drop(permit);
                sleep(Duration::from_millis(100)).await;
            }
        })
    };
    let slow: Vec<_> = (1..=30).map(slow).collect();
    sleep(Duration::from_mins(1)).await;
    let start = Instant::now();
    let mut held = Vec::new();
    // Three are free, one is given up: a third of twelve.
    for _ in 0..4 {
        let want = Want {
            flow: FlowKey {
                namespace: 2,
                request: 1000,
            },
            ..stream(1000, 1)
        };
        held.push(streaming(&queue, want).await);
    }
    assert!(
        start.elapsed() <= Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    sleep(Duration::from_mins(1)).await;
    {
        let state = queue.state.lock();
        // Nobody takes more than that while all places are in use.
        assert_eq!((state.places_of(1), state.places_of(2)), (8, 4));
    }
    drop(held);
    for task in slow {
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_namespace_the_request_with_the_fewest_streams_goes_first_and_has_its_part() {
    let queue = queue(0, 16);
    let streams = |flow: u64| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            loop {
                let permit = streaming(&queue, stream(flow, 1)).await;
                tokio::select! {
                    () = permit.preempted() => {}
                    () = sleep(Duration::from_mins(10)) => {}
                }
            }
        })
    };
    let mut all: Vec<_> = (0..200).map(|_| streams(1)).collect();
    sleep(Duration::from_mins(1)).await;
    // It came later, and its turn comes later.
    all.extend((0..200).map(|_| streams(2)));
    let places = || {
        let state = queue.state.lock();
        [1, 2].map(|flow| state.places_of_request(request(flow).flow))
    };
    assert_eq!(places(), [9, 0]);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(places(), [5, 4]);
    for task in all {
        task.abort();
    }
}

/// A look that so many tag PUTs may follow.
fn leading(puts: u32) -> Want {
    Want { puts, ..request(1) }
}

const TAG_PUT: Want = Want {
    flow: FlowKey {
        namespace: 1,
        request: 1,
    },
    turn: Turn::FIRST,
    places: 1,
    paced: Some(Zone::Content),
    connection: Connection::Prompt,
    puts: 0,
    paid: false,
};

async fn waited(queue: &Arc<HostQueue>, want: Want) -> u128 {
    let start = Instant::now();
    drop(queue.acquire(want).await);
    start.elapsed().as_millis()
}

#[tokio::test(start_paused = true)]
async fn each_protocol_has_a_rate_of_its_own_and_tag_puts_that_are_owed_hold_up_looks() {
    let queue = queue(40, 16);
    let spoken = |protocol, apart| Limit {
        protocol: Some(protocol),
        apart,
        ..CONTENT
    };
    let permit = queue.acquire(request(1)).await;
    assert!(queue.limited(spoken(Protocol::Http1, false), &permit, f64::INFINITY));
    assert!(queue.rate(Zone::Content, false) < 40.0);
    // An answer of HTTP/2, and the tag PUTs beside it.
    queue.served(spoken(Protocol::Http2, false), false);
    queue.served(spoken(Protocol::Http1, true), false);
    assert!(queue.rate(Zone::Content, false) >= 40.0);
    assert!(queue.rate(Zone::Content, true) < 40.0);
    sleep(Duration::from_secs(10)).await;
    for _ in 0..20 {
        drop(queue.acquire(TAG_PUT).await);
    }
    // Nine were there; the others are owed, at the rate that was lowered. What leads to no tag PUT has another bucket.
    assert_eq!(waited(&queue, request(1)).await, 0);
    let looked = waited(&queue, leading(1)).await;
    assert!((200..=400).contains(&looked), "{looked}");
    // The content of a large blob waits with them, and small ones do not.
    let token = Want {
        places: 0,
        ..request(1)
    };
    assert_eq!(waited(&queue, token).await, 0);
    let bulk = Want {
        connection: Connection::Bulk,
        ..token
    };
    drop(queue.acquire(TAG_PUT).await);
    let bulk = waited(&queue, bulk).await;
    assert!((25..=100).contains(&bulk), "{bulk}");
}

#[tokio::test(start_paused = true)]
async fn the_tag_puts_that_follow_a_look_are_paid_for_with_it() {
    let queue = queue(4, 3);
    let other = HostQueue::unpaced(3);
    let mut look = queue.acquire(leading(2)).await;
    let mut beside = other.acquire(leading(2)).await;
    let mut paid = Permit::answered(&mut look, &mut beside).unwrap();
    drop((look, beside));
    assert!(paid.take([&*other, &*queue]).is_none());
    assert!(paid.take([&*queue, &*other]).is_some());
    let put = Want {
        paid: true,
        ..TAG_PUT
    };
    assert_eq!(waited(&queue, put).await, 0);
    // One of two tokens was given back: of the first second's, that of the look and of a tag PUT are gone.
    drop(paid);
    assert_eq!(waited(&queue, request(1)).await, 500);
    // An unanswered look gives back what it took for others.
    sleep(Duration::from_secs(1)).await;
    drop(queue.acquire(leading(2)).await);
    assert_eq!(waited(&queue, request(1)).await, 250);
}

#[tokio::test(start_paused = true)]
async fn the_rate_grows_with_looks_that_nothing_follows() {
    let queue = HostQueue::new(Limits {
        rates: Rates {
            qps: 40,
            qps_max: 1000,
        },
        concurrency: 16,
        backoff_first: Duration::from_secs(1),
        backoff_max: Duration::from_mins(1),
    });
    let looks = (0..150).map(|_| async {
        let look = queue.acquire(leading(1)).await;
        sleep(Duration::from_millis(1)).await;
        drop(look);
        queue.served(CONTENT, false);
    });
    futures::future::join_all(looks).await;
    let rate = queue.rate(Zone::Content, false);
    assert!(rate >= 80.0, "{rate}");
}

/// Many who wait, half of them for a stream; half are of one namespace, of the others each has its own.
struct Crowd {
    state: State<()>,
    waiting: Vec<oneshot::Receiver<()>>,
    now: Instant,
}

impl Crowd {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let mut crowd = Self {
            state: State::new(16, Rates { qps: 1, qps_max: 1 }, now),
            waiting: Vec::new(),
            now,
        };
        // Idle flows have just been looked for: that comes with every doubling, and not with what is measured.
        for number in 0..=u64::try_from(count.next_power_of_two()).unwrap() {
            let want = if number % 4 < 2 {
                request(number)
            } else {
                stream(number, 1)
            };
            let namespace = if number % 2 == 0 { 1 } else { number };
            crowd.join(Want {
                flow: FlowKey {
                    namespace,
                    ..want.flow
                },
                ..want
            });
        }
        crowd
    }

    fn join(&mut self, want: Want) {
        let (owner, waits) = oneshot::channel();
        self.state.join(want, owner, None);
        self.waiting.push(waits);
    }
}

/// With every answer, and with everybody who joins, the queue is looked at.
#[test]
fn to_join_a_queue_that_lets_nobody_go_costs_no_more_among_many() {
    let crowd = |count| {
        let mut crowd = Crowd::new(count);
        while crowd.state.next(crowd.now).is_some() {}
        crowd
    };
    crate::cost::does_not_grow(crowd, |crowd| {
        crowd.join(request(u64::try_from(crowd.waiting.len()).unwrap()));
        assert!(crowd.state.next(crowd.now).is_none());
    });
}

#[test]
fn a_grant_costs_no_more_among_many_who_wait() {
    crate::cost::does_not_grow(Crowd::new, |crowd| {
        crowd.now += Duration::from_secs(1);
        // Of a second there is one token, so one of them or both are streams.
        for _ in 0..2 {
            let granted = crowd.state.next(crowd.now).unwrap();
            crowd.state.release(&granted.want, granted.number);
            crowd.join(granted.want);
        }
    });
}
