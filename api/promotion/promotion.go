package promotion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"promotion.ci.openshift.io/api/v1alpha1"
)

const (
	// startWithin is how long the creation of a request is retried while the API server does not answer.
	startWithin = 10 * time.Minute
	// deniedWithin is how long missing rights are not believed: an API server that has just started does not know its roles yet.
	deniedWithin = 10 * time.Second
	// again is the pause after a call that failed.
	again = 2 * time.Second
	// callTimeout ends a single call.
	callTimeout = 30 * time.Second
	// defaultCancelGrace is how long a cancelled request is waited for.
	defaultCancelGrace = 30 * time.Second
)

// Promotion is one request, seen from the job that asks for it. It is not safe for concurrent use.
type Promotion struct {
	// CancelGrace is how long Run waits for the end of a request that it cancelled; 30 seconds by default.
	CancelGrace time.Duration
	// Log gets a line for each change; nil: nothing is logged.
	Log func(format string, arguments ...any)

	client client.WithWatch
	// wanted is what is asked for.
	wanted *v1alpha1.PromotionRequest
	// last is the request as last seen; nil before it exists.
	last *v1alpha1.PromotionRequest
	// told is the last line logged about it.
	told string
	// finished is after how many seconds each float's image was seen to be finished.
	finished map[string]float64
}

// New asks for nothing yet. The client's scheme has the types of v1alpha1; the request has a name, which stands for the job: a job
// that is started again finds its own request by it.
func New(client client.WithWatch, request *v1alpha1.PromotionRequest) *Promotion {
	wanted := request.DeepCopy()
	// Only the controller writes status.
	wanted.Status = v1alpha1.PromotionRequestStatus{}
	return &Promotion{CancelGrace: defaultCancelGrace, client: client, wanted: wanted, finished: map[string]float64{}}
}

// Request is the request as last seen; nil before it is known to exist.
func (p *Promotion) Request() *v1alpha1.PromotionRequest {
	return p.last
}

// Run creates the request, or adopts its own, and waits until it is Staged or Complete, as until says. If the context is cancelled,
// it cancels the request and waits for its end, for CancelGrace at most; after the context's deadline the request goes on.
func (p *Promotion) Run(ctx context.Context, until string) error {
	err := p.Ensure(ctx)
	if err == nil {
		err = p.Wait(ctx, until)
	}
	if ReasonOf(err) != ReasonAPIError || ctx.Err() == nil {
		return err
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return p.timedOut()
	}
	graced, stop := context.WithTimeout(context.WithoutCancel(ctx), p.CancelGrace)
	defer stop()
	return p.Cancel(graced)
}

// Ensure creates the request, or adopts an existing one that asks for the same. It goes on through an API server that does not
// answer, for ten minutes at most.
func (p *Promotion) Ensure(ctx context.Context) error {
	var request *v1alpha1.PromotionRequest
	err := p.persist(ctx, startWithin, func(ctx context.Context) (err error) {
		request = p.wanted.DeepCopy()
		err = p.client.Create(ctx, request, strict)
		if apierrors.IsAlreadyExists(err) {
			request, err = p.adopt(ctx)
			return err
		}
		if err == nil {
			p.log("%s: created", p.name())
			err = p.complete(request)
		}
		return err
	})
	if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
		return &Error{ReasonInvalidSpec, err.Error()}
	}
	if err != nil {
		return explained(err)
	}
	p.observe(request)
	return nil
}

// adopt accepts an existing request as the job's own if it asks for the same.
//
// The API server fills in what a spec leaves out, so a dry-run creation tells what the job's spec comes to. suspend, cancel and
// ttlSecondsAfterFinished are not compared: anyone may change them, and they do not change what is promoted.
func (p *Promotion) adopt(ctx context.Context) (*v1alpha1.PromotionRequest, error) {
	existing := &v1alpha1.PromotionRequest{}
	if err := p.client.Get(ctx, client.ObjectKeyFromObject(p.wanted), existing); err != nil {
		return nil, err
	}
	wanted := p.wanted.DeepCopy()
	wanted.Name, wanted.GenerateName = "", "compared-"
	if err := p.client.Create(ctx, wanted, strict, client.DryRunAll); err != nil {
		return nil, err
	}
	if err := p.complete(wanted); err != nil {
		return nil, err
	}
	if fields := difference(existing.Spec, wanted.Spec); len(fields) > 0 {
		message := fmt.Sprintf("%s is there already and differs in %s; choose another name", p.name(), strings.Join(fields, ", "))
		return nil, &Error{ReasonDifferentRequest, message}
	}
	p.log("%s: adopted, created at %s", p.name(), existing.CreationTimestamp.UTC().Format(time.RFC3339))
	return existing, nil
}

// complete says whether the API server kept all that is asked for. A CRD older than these types drops the fields it does not know,
// unless they are refused, and the request would mean something else.
func (p *Promotion) complete(got *v1alpha1.PromotionRequest) error {
	lost := lacking("spec", asSent(p.wanted.Spec), asSent(got.Spec))
	if len(lost) == 0 {
		return nil
	}
	message := fmt.Sprintf("the API server dropped %s; upgrade the installed PromotionRequest definition, then delete %s", strings.Join(lost, ", "), p.name())
	return &Error{ReasonInvalidSpec, message}
}

// Cancel ends the request unless it is committed already, and waits for its end until the context ends. No error: it was committed
// and has run to its end.
func (p *Promotion) Cancel(ctx context.Context) error {
	if p.last == nil {
		// Its creation may have succeeded all the same.
		request, err := p.adopt(ctx)
		if err != nil {
			return &Error{ReasonInterrupted, p.name() + " was not created"}
		}
		p.observe(request)
	}
	p.log("%s: ended early; setting spec.cancel", p.name())
	// With its UID, so that no request of the same name from somebody else is cancelled.
	change := fmt.Sprintf(`{"metadata":{"uid":%q},"spec":{"cancel":true}}`, p.last.UID)
	err := p.persist(ctx, startWithin, func(ctx context.Context) error {
		request := p.last.DeepCopy()
		err := p.client.Patch(ctx, request, client.RawPatch(types.MergePatchType, []byte(change)))
		if err == nil {
			p.observe(request)
		}
		return err
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return p.deleted()
	}
	if err != nil {
		return &Error{ReasonInterrupted, fmt.Sprintf("%s could not be cancelled and goes on: %v", p.name(), err)}
	}
	err = p.Wait(ctx, v1alpha1.ConditionComplete)
	switch {
	case hasReached(p.last, v1alpha1.ConditionComplete) && err == nil:
		p.log("%s: it was committed already and ran to its end", p.name())
		return nil
	case hasReached(p.last, v1alpha1.ConditionComplete) || ReasonOf(err) == ReasonDeleted:
		p.log("%s: ended as %s", p.name(), p.last.Status.Phase)
		return err
	case isCommitted(p.last):
		return &Error{ReasonInterrupted, p.name() + " is committed and runs to its end without this job"}
	default:
		return &Error{ReasonInterrupted, p.name() + " is to be cancelled, and has not ended while it was waited for"}
	}
}

// persist repeats a call until it is answered. A single call is not cut off when ctx ends, so that its outcome is known.
func (p *Promotion) persist(ctx context.Context, within time.Duration, call func(context.Context) error) error {
	var last error
	var denied time.Time
	err := wait.PollUntilContextTimeout(ctx, again, within, true, func(ctx context.Context) (bool, error) {
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer stop()
		last = call(ctx)
		if !isDenied(last) {
			denied = time.Time{}
		} else if denied.IsZero() {
			denied = time.Now()
		}
		if mayPass(last) || isDenied(last) && time.Since(denied) < deniedWithin {
			p.log("%s: %v; asking again", p.name(), last)
			return false, nil
		}
		return true, last
	})
	if wait.Interrupted(err) && last != nil {
		return last
	}
	return err
}

// explained is an error of this package, whatever it was.
func explained(err error) error {
	var failure *Error
	ended := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
	if err == nil || ended || errors.As(err, &failure) {
		return err
	}
	return &Error{ReasonAPIError, err.Error()}
}

// hasReached says whether a request is where it is waited for, or ended.
func hasReached(request *v1alpha1.PromotionRequest, until string) bool {
	ends := []string{v1alpha1.ConditionComplete, v1alpha1.ConditionFailed, until}
	return request != nil && slices.ContainsFunc(ends, func(kind string) bool {
		return meta.IsStatusConditionTrue(request.Status.Conditions, kind)
	})
}

// verdict judges a request that is where it is waited for, or ended.
func verdict(request *v1alpha1.PromotionRequest) error {
	failed := meta.FindStatusCondition(request.Status.Conditions, v1alpha1.ConditionFailed)
	if failed == nil || failed.Status != metav1.ConditionTrue {
		return nil
	}
	return &Error{failed.Reason, failed.Message}
}

// isCommitted says whether floats of a request will move in any case.
func isCommitted(request *v1alpha1.PromotionRequest) bool {
	return request.Status.Committed || slices.ContainsFunc(request.Status.Images, func(image v1alpha1.ImageStatus) bool {
		return image.Committed
	})
}

func (p *Promotion) deleted() error {
	return &Error{ReasonDeleted, p.name() + " was deleted before it ended"}
}

// timedOut says that the request goes on.
func (p *Promotion) timedOut() error {
	if p.last == nil {
		return &Error{ReasonTimeout, p.name() + " was not created in time"}
	}
	return &Error{ReasonTimeout, fmt.Sprintf("%s is %s, %s finished; it goes on without this job", p.name(), p.last.Status.Phase, p.last.Status.Progress)}
}

func (p *Promotion) name() string {
	return p.wanted.Namespace + "/" + p.wanted.Name
}

func (p *Promotion) log(format string, arguments ...any) {
	if p.Log != nil {
		p.Log(format, arguments...)
	}
}
