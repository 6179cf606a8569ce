package promotion

import (
	"errors"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// The reasons of this package, beside those that the controller gives requests.
const (
	// ReasonAPIError: a right is missing, the definition is not installed, or the API server did not answer.
	ReasonAPIError = "APIError"
	// ReasonDeleted: somebody deleted the request.
	ReasonDeleted = "Deleted"
	// ReasonDifferentRequest: under this name something else was asked for.
	ReasonDifferentRequest = "DifferentRequest"
	// ReasonInterrupted: the context was cancelled; the message says what becomes of the request.
	ReasonInterrupted = "Interrupted"
	// ReasonInvalidSpec: the API server refused the request, or dropped fields of it.
	ReasonInvalidSpec = "InvalidSpec"
	// ReasonStageFailed: not all sources were staged; the log says which.
	ReasonStageFailed = "StageFailed"
	// ReasonTimeout: the context's deadline has passed; the request goes on.
	ReasonTimeout = "Timeout"
)

// Error says why a promotion did not come about.
type Error struct {
	// Reason is one word for programs.
	Reason string
	// Message is a line for people.
	Message string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// ReasonOf is the reason of an error, ReasonAPIError for one of another kind, and empty for none.
func ReasonOf(err error) string {
	var failure *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &failure):
		return failure.Reason
	default:
		return ReasonAPIError
	}
}

// isDenied says whether the caller is unknown or lacks a right.
func isDenied(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
}

// mayPass says whether the same call may succeed later: there was no answer, or the server has a problem.
func mayPass(err error) bool {
	var transport *url.Error
	return errors.As(err, &transport) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// messageOf is an error for people, without its reason.
func messageOf(err error) string {
	var failure *Error
	if errors.As(err, &failure) {
		return failure.Message
	}
	return err.Error()
}
