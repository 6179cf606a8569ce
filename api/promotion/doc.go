// Package promotion has images promoted by the promotion-controller of a cluster: it stages them, asks for the promotion, waits,
// cancels, and reports.
//
//	Stage ──▶ Ensure ──▶ Wait ──▶ Staged or Complete ──▶ Results, JUnit
//	copies,   creates,     │
//	pins      or adopts    └─ the context is cancelled ──▶ Cancel ──▶ Cancelled, or committed and run to its end
//
// Run does all but Stage. Every error of this package that says why a promotion did not come about is an *Error with a Reason: the
// request's own, or one of the constants here.
package promotion
