//! Nothing but a test, `simulation`: the whole controller on virtual time and one seed.
