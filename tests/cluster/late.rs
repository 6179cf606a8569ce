//! No write lands late: a tag PUT that was given up does not move a float that somebody else has since moved.
//!
//! The path to the registry is a real one that is cut and healed; the registry works on a PUT long after its client has gone; the leader is
//! killed, and the request deleted, while the PUT is on the wire.

mod leases;
mod path;
mod proxy;
mod takeover;
