package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"reflect"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

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
)

// The job's own reasons, beside those of the controller.
const (
	reasonAPIError         = "APIError"
	reasonDeleted          = "Deleted"
	reasonDifferentRequest = "DifferentRequest"
	reasonInterrupted      = "Interrupted"
	reasonInvalidSpec      = "InvalidSpec"
	reasonTimeout          = "Timeout"
)

var errTimeout = errors.New("the time of --timeout is over")

// failure says why what the job waited for did not happen.
type failure struct {
	reason  string
	message string
}

func (f *failure) Error() string { return f.reason + ": " + f.message }

// job is one promotion, seen from the job that asked for it.
type job struct {
	options *options
	client  *client
	log     *log.Logger
	// last is the request as last seen; nil before it exists.
	last *v1alpha1.PromotionRequest
	// told is the last line logged about it.
	told string
	// finished is after how many seconds each float's image was seen to be finished.
	finished map[string]float64
}

// run asks for the promotion and waits. When ctx is interrupted it cancels the request and calls release, so that a second signal,
// a second or more later, ends the program.
func (j *job) run(ctx context.Context, release func()) *failure {
	request, err := j.ensure(ctx)
	if err == nil {
		err = j.wait(ctx, request, j.options.until)
	}
	if err != nil && ctx.Err() != nil {
		cause := context.Cause(ctx)
		release()
		if errors.Is(cause, errTimeout) {
			return j.timedOut()
		}
		return j.takeBack()
	}
	var failed *failure
	switch {
	case err == nil:
		return verdict(j.last)
	case errors.As(err, &failed):
		return failed
	default:
		return &failure{reasonAPIError, err.Error()}
	}
}

// ensure creates the request, or adopts an existing one with the same spec.
func (j *job) ensure(ctx context.Context) (*v1alpha1.PromotionRequest, error) {
	var request *v1alpha1.PromotionRequest
	err := j.persist(ctx, startWithin, func(ctx context.Context) (err error) {
		request, err = j.client.Create(ctx, j.options.request, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
		if apierrors.IsAlreadyExists(err) {
			request, err = j.adopt(ctx)
			return err
		}
		if err == nil {
			j.log.Printf("%s: created", j.name())
			err = j.complete(request)
		}
		return err
	})
	if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
		return nil, &failure{reasonInvalidSpec, err.Error()}
	}
	if err != nil {
		return nil, err
	}
	j.observe(request)
	return request, nil
}

// adopt accepts an existing request as the job's own if it asks for the same.
//
// The API server fills in what a spec leaves out, so a dry-run creation tells what the job's spec comes to. suspend, cancel and
// ttlSecondsAfterFinished are not compared: anyone may change them, and they do not change what is promoted.
func (j *job) adopt(ctx context.Context) (*v1alpha1.PromotionRequest, error) {
	existing, err := j.client.Get(ctx, j.options.request.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	wanted := j.options.request.DeepCopy()
	wanted.Name, wanted.GenerateName = "", "compared-"
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
	wanted, err = j.client.Create(ctx, wanted, options)
	if err != nil {
		return nil, err
	}
	if err := j.complete(wanted); err != nil {
		return nil, err
	}
	if fields := difference(existing.Spec, wanted.Spec); len(fields) > 0 {
		message := fmt.Sprintf("%s is there already and differs in %s; choose another --name", j.name(), strings.Join(fields, ", "))
		return nil, &failure{reasonDifferentRequest, message}
	}
	j.log.Printf("%s: adopted, created at %s", j.name(), existing.CreationTimestamp.UTC().Format(time.RFC3339))
	return existing, nil
}

// complete says whether the API server kept all that the job asks for. A CRD older than this program drops the fields it does not
// know, unless they are refused, and the request would mean something else.
func (j *job) complete(got *v1alpha1.PromotionRequest) error {
	lost := lacking("spec", asSent(j.options.request.Spec), asSent(got.Spec))
	if len(lost) == 0 {
		return nil
	}
	message := fmt.Sprintf("the API server dropped %s; upgrade the installed PromotionRequest definition, then delete %s", strings.Join(lost, ", "), j.name())
	return &failure{reasonInvalidSpec, message}
}

// lacking names what was sent and did not come back. What was added does not matter.
func lacking(path string, sent, got any) []string {
	var lost []string
	switch sent := sent.(type) {
	case map[string]any:
		got, _ := got.(map[string]any)
		for name, value := range sent {
			lost = append(lost, lacking(path+"."+name, value, got[name])...)
		}
	case []any:
		got, _ := got.([]any)
		for index, value := range sent {
			var other any
			if index < len(got) {
				other = got[index]
			}
			lost = append(lost, lacking(fmt.Sprintf("%s[%d]", path, index), value, other)...)
		}
	default:
		if !reflect.DeepEqual(sent, got) {
			lost = append(lost, path)
		}
	}
	slices.Sort(lost)
	return lost
}

// asSent is a spec as it is sent.
func asSent(spec v1alpha1.PromotionRequestSpec) map[string]any {
	var fields map[string]any
	text, err := json.Marshal(spec)
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		panic(err) // Strings and numbers are always JSON.
	}
	return fields
}

// difference names the fields in which two specs ask for something else.
func difference(a, b v1alpha1.PromotionRequestSpec) []string {
	for _, spec := range []*v1alpha1.PromotionRequestSpec{&a, &b} {
		spec.Suspend, spec.Cancel, spec.TTLSecondsAfterFinished = nil, nil, nil
	}
	one, other := asSent(a), asSent(b)
	var names []string
	for name, value := range one {
		if !reflect.DeepEqual(value, other[name]) {
			names = append(names, name)
		}
	}
	for name := range other {
		if _, ok := one[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// persist repeats a call until it is answered. A single call is not cut off when ctx ends, so that its outcome is known.
func (j *job) persist(ctx context.Context, within time.Duration, call func(context.Context) error) error {
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
			j.log.Printf("%s: %v; asking again", j.name(), last)
			return false, nil
		}
		return true, last
	})
	if wait.Interrupted(err) && last != nil {
		return last
	}
	return err
}

// wait watches the request until it is where the job wants it, or ended. It survives watches that expire and API servers that go
// away.
func (j *job) wait(ctx context.Context, request *v1alpha1.PromotionRequest, until string) error {
	there := func(store cache.Store) (bool, error) {
		if len(store.List()) > 0 {
			return false, nil
		}
		// The first list may be older than the request.
		_, err := j.client.Get(ctx, request.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, j.deleted()
		}
		return false, nil
	}
	reached := func(event watch.Event) (bool, error) {
		seen, ok := event.Object.(*v1alpha1.PromotionRequest)
		if !ok {
			return false, apierrors.FromObject(event.Object)
		}
		if event.Type == watch.Deleted || seen.UID != request.UID {
			return false, j.deleted()
		}
		j.observe(seen)
		return hasReached(seen, until), nil
	}
	_, err := watchtools.UntilWithSync(ctx, only(j.client, request.Name), &v1alpha1.PromotionRequest{}, there, reached)
	return err
}

// hasReached says whether a request is where the job wants it, or ended.
func hasReached(request *v1alpha1.PromotionRequest, until string) bool {
	ends := []string{v1alpha1.ConditionComplete, v1alpha1.ConditionFailed, until}
	return slices.ContainsFunc(ends, func(kind string) bool {
		return meta.IsStatusConditionTrue(request.Status.Conditions, kind)
	})
}

// verdict judges a request that is where the job wants it, or ended.
func verdict(request *v1alpha1.PromotionRequest) *failure {
	failed := meta.FindStatusCondition(request.Status.Conditions, v1alpha1.ConditionFailed)
	if failed == nil || failed.Status != metav1.ConditionTrue {
		return nil
	}
	return &failure{failed.Reason, failed.Message}
}

// observe notes and logs what is new about the request.
func (j *job) observe(request *v1alpha1.PromotionRequest) {
	j.last = request
	status := request.Status
	now := time.Since(request.CreationTimestamp.Time).Seconds()
	if status.CompletionTime != nil {
		now = status.CompletionTime.Sub(request.CreationTimestamp.Time).Seconds()
	}
	for _, image := range status.Images {
		if _, known := j.finished[image.Float]; !known && isFinished(image.Phase) {
			j.finished[image.Float] = max(now, 0)
		}
	}
	progressing := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionProgressing)
	if progressing == nil {
		return
	}
	if line := fmt.Sprintf("%s %s %s", status.Phase, status.Progress, progressing.Reason); line != j.told {
		j.told = line
		j.log.Printf("%s: %s, %s finished, %s: %s", j.name(), status.Phase, status.Progress, progressing.Reason, progressing.Message)
	}
}

func isFinished(phase v1alpha1.Phase) bool {
	ends := []v1alpha1.Phase{v1alpha1.PhasePosted, v1alpha1.PhasePlanned, v1alpha1.PhaseFailed, v1alpha1.PhaseCancelled}
	return slices.Contains(ends, phase)
}

// timedOut leaves the request to itself.
func (j *job) timedOut() *failure {
	if j.last == nil {
		return &failure{reasonTimeout, fmt.Sprintf("%s was not created within %s", j.name(), j.options.timeout)}
	}
	message := fmt.Sprintf("%s is not %s after %s (%s); it goes on without this job", j.name(), j.options.until, j.options.timeout, j.last.Status.Phase)
	return &failure{reasonTimeout, message}
}

// takeBack cancels the request of a job that is ended early, and waits a while for the outcome. A committed request runs to its
// end: its floats move.
func (j *job) takeBack() *failure {
	ctx, stop := context.WithTimeout(context.Background(), j.options.cancelGrace)
	defer stop()
	if j.last == nil {
		// Its creation may have succeeded all the same.
		if request, err := j.adopt(ctx); err == nil {
			j.observe(request)
		} else {
			return &failure{reasonInterrupted, j.name() + " was not created"}
		}
	}
	j.log.Printf("%s: ended early; setting spec.cancel", j.name())
	// With its UID, so that no request of the same name from somebody else is cancelled.
	change := fmt.Sprintf(`{"metadata":{"uid":%q},"spec":{"cancel":true}}`, j.last.UID)
	err := j.persist(ctx, j.options.cancelGrace, func(ctx context.Context) error {
		request, err := j.client.Patch(ctx, j.last.Name, types.MergePatchType, []byte(change), metav1.PatchOptions{})
		if err == nil {
			j.observe(request)
		}
		return err
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return j.deleted()
	}
	if err != nil {
		return &failure{reasonInterrupted, fmt.Sprintf("%s could not be cancelled and goes on: %v", j.name(), err)}
	}
	err = j.wait(ctx, j.last, v1alpha1.ConditionComplete)
	switch failed := verdict(j.last); {
	case err == nil && failed == nil:
		j.log.Printf("%s: it was committed already and ran to its end", j.name())
		return nil
	case err == nil:
		j.log.Printf("%s: ended as %s", j.name(), j.last.Status.Phase)
		return failed
	case isCommitted(j.last):
		return &failure{reasonInterrupted, j.name() + " is committed and runs to its end without this job"}
	default:
		return &failure{reasonInterrupted, fmt.Sprintf("%s is to be cancelled, and has not ended within %s", j.name(), j.options.cancelGrace)}
	}
}

// isCommitted says whether floats of a request will move in any case.
func isCommitted(request *v1alpha1.PromotionRequest) bool {
	return request.Status.Committed || slices.ContainsFunc(request.Status.Images, func(image v1alpha1.ImageStatus) bool {
		return image.Committed
	})
}

func (j *job) deleted() *failure {
	return &failure{reasonDeleted, j.name() + " was deleted before it ended"}
}

func (j *job) name() string {
	return j.options.request.Namespace + "/" + j.options.request.Name
}
