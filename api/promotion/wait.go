package promotion

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"promotion.ci.openshift.io/api/v1alpha1"
)

// Wait watches the request until the condition that until names is True, or until it ended. It survives watches that break and
// expire, and API servers that go away, until the context ends. An error: the request failed, or was deleted.
func (p *Promotion) Wait(ctx context.Context, until string) error {
	if p.last == nil {
		return &Error{ReasonAPIError, p.name() + " is not known to exist; call Ensure first"}
	}
	var denied time.Time
	for {
		reached, err := p.follow(ctx, until)
		switch {
		case reached:
			return verdict(p.last)
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil || mayPass(err):
			denied = time.Time{}
		case isDenied(err) && denied.IsZero():
			denied = time.Now()
		case isDenied(err) && time.Since(denied) < deniedWithin:
		default:
			return explained(err)
		}
		if err != nil {
			p.log("%s: %v; asking again", p.name(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(again):
		}
	}
}

// follow watches once: until the request is where it is waited for, or the watch ends.
func (p *Promotion) follow(ctx context.Context, until string) (bool, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Opened before the request is read, so that no change falls between.
	events, err := p.client.Watch(ctx, &v1alpha1.PromotionRequestList{},
		client.InNamespace(p.wanted.Namespace), client.MatchingFields{metav1.ObjectNameField: p.wanted.Name})
	if err != nil {
		return false, err
	}
	defer events.Stop()
	seen := &v1alpha1.PromotionRequest{}
	asking, asked := context.WithTimeout(ctx, callTimeout)
	err = p.client.Get(asking, client.ObjectKeyFromObject(p.wanted), seen)
	asked()
	if apierrors.IsNotFound(err) {
		return false, p.deleted()
	}
	if err != nil {
		return false, err
	}
	for {
		if seen.UID != p.last.UID {
			return false, p.deleted()
		}
		p.observe(seen)
		if hasReached(p.last, until) {
			return true, nil
		}
		for seen = nil; seen == nil; {
			select {
			case <-ctx.Done():
				return false, ctx.Err()
			case event, open := <-events.ResultChan():
				if !open {
					return false, nil
				}
				if seen, err = p.seen(event); err != nil {
					return false, err
				}
			}
		}
	}
}

// seen is the request that an event is about; none if it is about another.
func (p *Promotion) seen(event watch.Event) (*v1alpha1.PromotionRequest, error) {
	if event.Type == watch.Error {
		return nil, apierrors.FromObject(event.Object)
	}
	request, ok := event.Object.(*v1alpha1.PromotionRequest)
	switch {
	case !ok || request.Name != p.wanted.Name:
		return nil, nil
	case event.Type == watch.Deleted && request.UID == p.last.UID:
		return nil, p.deleted()
	case event.Type == watch.Deleted:
		return nil, nil
	default:
		return request, nil
	}
}

// observe notes and logs what is new about the request. What a slow watch shows late is not news.
func (p *Promotion) observe(request *v1alpha1.PromotionRequest) {
	if p.last != nil && hasReached(p.last, v1alpha1.ConditionComplete) && !hasReached(request, v1alpha1.ConditionComplete) {
		return
	}
	p.last = request
	status := request.Status
	now := time.Since(request.CreationTimestamp.Time).Seconds()
	if status.CompletionTime != nil {
		now = status.CompletionTime.Sub(request.CreationTimestamp.Time).Seconds()
	}
	for _, image := range status.Images {
		if _, known := p.finished[image.Float]; !known && isFinished(image.Phase) {
			p.finished[image.Float] = max(now, 0)
		}
	}
	progressing := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionProgressing)
	if progressing == nil {
		return
	}
	if line := fmt.Sprintf("%s %s %s", status.Phase, status.Progress, progressing.Reason); line != p.told {
		p.told = line
		p.log("%s: %s, %s finished, %s: %s", p.name(), status.Phase, status.Progress, progressing.Reason, progressing.Message)
	}
}

func isFinished(phase v1alpha1.Phase) bool {
	ends := []v1alpha1.Phase{v1alpha1.PhasePosted, v1alpha1.PhasePlanned, v1alpha1.PhaseFailed, v1alpha1.PhaseCancelled}
	return slices.Contains(ends, phase)
}
