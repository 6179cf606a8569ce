//! Seats: how many requests of one namespace may be at work at once.
//!
//! A request takes a seat as it begins, and leaves it when it holds nothing any more. While all are taken the others stand in line,
//! and come in the order in which they were created. One in line may not begin, so that it delays nobody of another namespace: a
//! newer request on its float supersedes it, as it would a suspended one. Those of its own namespace stand in line behind it.
//!
//! Guaranteed: no more than so many sit by asking; who is told to come keeps its place until it has sat down or stood back; a line
//! moves whenever there is a seat, because its first are told then.

use std::collections::{BTreeMap, BTreeSet};

use super::claims::Uid;

/// What is counted together: the requests of a namespace that promote, and those that only plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Room {
    /// The namespace.
    pub namespace: String,
    /// Whether they only plan.
    pub plans: bool,
}

/// Who sits where, and who waits for a seat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Seats {
    /// Of each room; 0: any number.
    most: usize,
    rooms: BTreeMap<Room, Rows>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Rows {
    taken: BTreeSet<Uid>,
    /// By order.
    line: BTreeMap<(u64, Uid), Place>,
}

/// What one in line has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// Nothing.
    Waits,
    /// To come.
    Called,
    /// That somebody before it in the line has its float: it comes when that one has come.
    Behind,
}

impl Seats {
    /// So many in each room; 0: any number.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            rooms: BTreeMap::new(),
        }
    }

    /// How many a room has; 0: any number.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether `uid`, which could begin now, has a seat: it had one, or one is left beside those that older ones in line are to
    /// have, none of whom is among `rivals`. Otherwise it stands in line from now on.
    pub fn ask<'a>(
        &mut self,
        room: &Room,
        uid: &str,
        order: u64,
        mut rivals: impl Iterator<Item = &'a Uid>,
    ) -> bool {
        if self.most == 0 {
            return true;
        }
        let rows = self.rooms.entry(room.clone()).or_default();
        if rows.taken.contains(uid) {
            return true;
        }
        // Before an order is recorded it may change: nobody waits for himself.
        rows.line
            .retain(|(at, other), _| other != uid || *at == order);
        let own = (order, uid.to_owned());
        let before = rows.line.range(..&own).count();
        let waits = |rival: &Uid| rows.line.keys().any(|(_, other)| other == rival);
        if rivals.any(waits) {
            rows.line.insert(own, Place::Behind);
            return false;
        }
        if rows.taken.len() + before >= self.most {
            rows.line.insert(own, Place::Waits);
            return false;
        }
        rows.stand_back(uid);
        rows.taken.insert(own.1);
        true
    }

    /// Seats one that has begun already, whether or not there is a seat.
    pub fn take(&mut self, room: &Room, uid: &str) {
        if self.most > 0 {
            let rows = self.rooms.entry(room.clone()).or_default();
            rows.taken.insert(uid.to_owned());
        }
    }

    /// `uid` holds nothing any more: its seat is free, if it has one.
    pub fn leave(&mut self, room: &Room, uid: &str) {
        if let Some(rows) = self.rooms.get_mut(room) {
            rows.taken.remove(uid);
            self.tidy(room);
        }
    }

    /// `uid` could not begin now if it had a seat: it stands in line no longer, if it did.
    pub fn stand_back(&mut self, room: &Room, uid: &str) {
        if let Some(rows) = self.rooms.get_mut(room) {
            rows.stand_back(uid);
            self.tidy(room);
        }
    }

    /// Those who are to come now: the first in line, as many as there are seats, but for those that were told before.
    pub fn call(&mut self, room: &Room) -> Vec<Uid> {
        let Some(rows) = self.rooms.get_mut(room) else {
            return Vec::new();
        };
        let free = self.most.saturating_sub(rows.taken.len());
        let first = rows.line.iter_mut().take(free);
        let waiting = first.filter(|(_, place)| **place == Place::Waits);
        let called = waiting.map(|((_, uid), place)| {
            *place = Place::Called;
            uid.clone()
        });
        called.collect()
    }

    fn tidy(&mut self, room: &Room) {
        let empty = |rows: &Rows| rows.taken.is_empty() && rows.line.is_empty();
        if self.rooms.get(room).is_some_and(empty) {
            self.rooms.remove(room);
        }
    }
}

impl Rows {
    /// Takes one out of the line; whoever stood behind one of the line may come now.
    fn stand_back(&mut self, uid: &str) {
        let before = self.line.len();
        self.line.retain(|(_, other), _| other != uid);
        if self.line.len() < before {
            for place in self.line.values_mut().filter(|p| **p == Place::Behind) {
                *place = Place::Waits;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn room(namespace: &str) -> Room {
        Room {
            namespace: namespace.into(),
            plans: false,
        }
    }

    fn ask(seats: &mut Seats, namespace: &str, order: u64) -> bool {
        behind(seats, namespace, order, &[])
    }

    fn behind(seats: &mut Seats, namespace: &str, order: u64, rivals: &[u64]) -> bool {
        let rivals: Vec<Uid> = rivals.iter().map(ToString::to_string).collect();
        seats.ask(&room(namespace), &order.to_string(), order, rivals.iter())
    }

    #[test]
    fn a_namespace_has_so_many_seats_and_none_of_anothers() {
        let mut seats = Seats::new(2);
        assert!(ask(&mut seats, "a", 1) && ask(&mut seats, "a", 2));
        assert!(!ask(&mut seats, "a", 3));
        assert!(ask(&mut seats, "a", 1), "it sits");
        assert!(ask(&mut seats, "b", 4) && ask(&mut seats, "b", 5));
        let plans = Room {
            plans: true,
            ..room("a")
        };
        assert!(seats.ask(&plans, "6", 6, [].iter()));
        assert_eq!(seats.call(&room("a")), Vec::<Uid>::new());
    }

    #[test]
    fn the_line_moves_in_the_order_of_creation_whoever_asks_first() {
        let mut seats = Seats::new(1);
        assert!(ask(&mut seats, "a", 1));
        for order in [5, 3, 4] {
            assert!(!ask(&mut seats, "a", order));
        }
        seats.leave(&room("a"), "1");
        assert_eq!(seats.call(&room("a")), ["3"]);
        assert_eq!(seats.call(&room("a")), Vec::<Uid>::new(), "told once");
        // Neither one in line nor a newcomer takes what is kept for the first.
        assert!(!ask(&mut seats, "a", 5) && !ask(&mut seats, "a", 6));
        // One that was created before them all may.
        assert!(ask(&mut seats, "a", 2));
        assert!(!ask(&mut seats, "a", 3));
        seats.leave(&room("a"), "2");
        assert_eq!(
            seats.call(&room("a")),
            ["3"],
            "told again, since it was sent back"
        );
        assert!(ask(&mut seats, "a", 3));
    }

    #[test]
    fn who_stands_back_lets_the_next_come() {
        let mut seats = Seats::new(1);
        assert!(ask(&mut seats, "a", 1) && !ask(&mut seats, "a", 2) && !ask(&mut seats, "a", 3));
        seats.leave(&room("a"), "1");
        assert_eq!(seats.call(&room("a")), ["2"]);
        seats.stand_back(&room("a"), "2");
        assert_eq!(seats.call(&room("a")), ["3"]);
        assert!(ask(&mut seats, "a", 3));
        seats.leave(&room("a"), "3");
        assert_eq!(seats, Seats::new(1), "nothing is left of it");
    }

    #[test]
    fn who_shares_a_float_with_one_in_line_comes_after_it_whatever_is_free() {
        let mut seats = Seats::new(2);
        assert!(ask(&mut seats, "a", 1) && ask(&mut seats, "a", 2) && !ask(&mut seats, "a", 3));
        seats.leave(&room("a"), "1");
        seats.leave(&room("a"), "2");
        assert!(!behind(&mut seats, "a", 4, &[3]));
        assert_eq!(seats.call(&room("a")), ["3"]);
        assert!(ask(&mut seats, "a", 3));
        assert_eq!(seats.call(&room("a")), ["4"]);
        assert!(behind(&mut seats, "a", 4, &[3]));
        // One of another namespace is in no line of this one.
        assert!(!ask(&mut seats, "a", 5));
        assert!(behind(&mut seats, "b", 6, &[5]));
    }

    #[test]
    fn who_has_begun_before_counts_even_beyond_the_number() {
        let mut seats = Seats::new(1);
        seats.take(&room("a"), "1");
        seats.take(&room("a"), "2");
        assert!(!ask(&mut seats, "a", 3));
        seats.leave(&room("a"), "1");
        assert_eq!(seats.call(&room("a")), Vec::<Uid>::new());
        seats.leave(&room("a"), "2");
        assert_eq!(seats.call(&room("a")), ["3"]);
    }

    #[test]
    fn one_whose_order_changes_before_it_is_recorded_is_in_line_once() {
        let mut seats = Seats::new(1);
        assert!(ask(&mut seats, "a", 1));
        assert!(!seats.ask(&room("a"), "x", 2, [].iter()));
        assert!(!seats.ask(&room("a"), "x", 5, [].iter()));
        seats.leave(&room("a"), "1");
        assert_eq!(seats.call(&room("a")), ["x"]);
        assert!(seats.ask(&room("a"), "x", 6, [].iter()));
        seats.leave(&room("a"), "x");
        assert_eq!(seats, Seats::new(1));
    }

    #[test]
    fn without_a_number_everybody_sits() {
        let mut seats = Seats::new(0);
        assert!((1..1000).all(|order| ask(&mut seats, "a", order)));
        assert_eq!(seats, Seats::new(0));
    }

    proptest! {
        /// Requests ask when they are told to and at any other time, stand back and leave; those that are told come in the end.
        #[test]
        fn whatever_comes_no_more_sit_than_may_and_the_line_never_stands_still(
            most in 1_usize..4, moves in proptest::collection::vec((0_u8..4, 0_u64..8), 0..60),
        ) {
            let (mut seats, room) = (Seats::new(most), room("a"));
            let (mut sitting, mut line) = (BTreeSet::new(), BTreeSet::new());
            let mut told: BTreeSet<u64> = BTreeSet::new();
            for (what, order) in moves {
                let uid = order.to_string();
                match what {
                    // Every odd one shares the float of the even one before it.
                    0 | 1 => {
                        let rival = (order % 2 == 1).then(|| (order - 1).to_string());
                        let sat = seats.ask(&room, &uid, order, rival.iter());
                        told.remove(&order);
                        let first = line.iter().next().is_none_or(|first| order <= *first);
                        if sat {
                            prop_assert!(sitting.contains(&order) || first || line.range(..order).count() + sitting.len() < most);
                            line.remove(&order);
                            sitting.insert(order);
                        } else {
                            line.insert(order);
                        }
                    }
                    2 => {
                        seats.leave(&room, &uid);
                        sitting.remove(&order);
                    }
                    _ => {
                        seats.stand_back(&room, &uid);
                        line.remove(&order);
                        told.remove(&order);
                    }
                }
                told.extend(seats.call(&room).iter().map(|uid| uid.parse::<u64>().unwrap()));
                prop_assert!(sitting.len() <= most);
                let free = most - sitting.len();
                if free > 0 && let Some(first) = line.iter().next() {
                    prop_assert!(told.contains(first), "{first} is not told: {seats:?}");
                }
            }
        }
    }
}
