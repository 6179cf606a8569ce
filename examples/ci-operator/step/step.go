// Package step has a promotion in the form in which ci-operator runs what a job consists of: a node of a graph, with nine methods.
//
// The interfaces here say in our words what ci-operator expects, so that nothing of it has to be imported; Step satisfies them. What
// stays for ci-operator is an adapter of a few lines: its own types for inputs and links, and an error that carries Reason by
// ForReason.
package step

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"promotion.ci.openshift.io/api/promotion"
	"promotion.ci.openshift.io/api/v1alpha1"
)

// Reason is what a failed promotion is counted as. The request's own reason follows it: promoting_images:SourceGone.
const Reason = "promoting_images"

// Link is something that a step needs, or makes, in the graph: an image of the pipeline, or all of a release's.
type Link interface {
	// SatisfiedBy says whether another link is this one, or more.
	SatisfiedBy(other Link) bool
}

// Node is a step of a job's graph.
type Node interface {
	// Inputs are what the step's result depends on; two jobs of the same inputs get the same.
	Inputs() ([]string, error)
	// Validate says what is wrong before anything runs.
	Validate() error
	// Run does it. A context that is cancelled ends it.
	Run(ctx context.Context) error
	// Name is how the step is asked for.
	Name() string
	// Description is a line for people.
	Description() string
	// Requires are the links that must be there first.
	Requires() []Link
	// Creates are the links that are there afterwards.
	Creates() []Link
	// Provides are parameters for later steps, each read when it is needed.
	Provides() map[string]func() (string, error)
	// Objects are what the step makes in the cluster.
	Objects() []client.Object
}

// Reported is a step that has results of its own, one for each image.
type Reported interface {
	// SubTests are the results; ci-operator writes them as junit.
	SubTests() []promotion.Result
}

// Failure is why the step failed, with the reason that ci-operator counts.
type Failure struct {
	// Reason begins with promoting_images.
	Reason string
	err    error
}

func (f *Failure) Error() string { return fmt.Sprintf("could not promote: %v", f.err) }

// Unwrap is the error of the package promotion.
func (f *Failure) Unwrap() error { return f.err }

// Step promotes images: it stages them from where it runs, asks the controller to promote them, and waits.
type Step struct {
	// Client is of the cluster of the controller, not of that where images are built.
	Client client.WithWatch
	// Request is what is to be promoted. Its name stands for the job.
	Request *v1alpha1.PromotionRequest
	// Until is Staged or Complete.
	Until string
	// Stager copies the sources first; without a program nothing is staged.
	Stager promotion.Stager
	// After are the steps whose images are promoted.
	After []Link
	// Artifacts is where the request is written when it has ended; empty: nowhere.
	Artifacts string
	// Log gets a line for each change.
	Log func(format string, arguments ...any)

	asked *promotion.Promotion
	err   error
}

var (
	_ Node     = &Step{}
	_ Reported = &Step{}
)

// Inputs are none: what is promoted is what the job built.
func (s *Step) Inputs() ([]string, error) { return nil, nil }

// Validate refuses what no controller would carry out.
func (s *Step) Validate() error {
	switch {
	case s.Client == nil:
		return errors.New("no client of the cluster of the controller")
	case s.Request == nil || s.Request.Name == "" || s.Request.Namespace == "":
		return errors.New("the request has no name or no namespace")
	case len(s.Request.Spec.Images) == 0:
		return errors.New("the request promotes no image")
	case s.Until != v1alpha1.ConditionStaged && s.Until != v1alpha1.ConditionComplete:
		return fmt.Errorf("until %q: set Staged or Complete", s.Until)
	}
	return nil
}

// Run stages, asks and waits. A *Failure says why not.
func (s *Step) Run(ctx context.Context) error {
	if s.err = s.run(ctx); s.err == nil {
		return nil
	}
	return &Failure{Reason: Reason + ":" + promotion.ReasonOf(s.err), err: s.err}
}

func (s *Step) run(ctx context.Context) error {
	request := s.Request
	s.asked = promotion.New(s.Client, request)
	if s.Stager.Program != "" {
		staged, err := s.Stager.Stage(ctx, request)
		if err != nil {
			return err
		}
		request = staged[0]
	}
	s.asked = promotion.New(s.Client, request)
	s.asked.Log = s.Log
	err := s.asked.Run(ctx, s.Until)
	if s.Artifacts == "" {
		return err
	}
	// What was promoted is promoted, whether it can be written down or not.
	if written := s.write(); written != nil && s.Log != nil {
		s.Log("cannot write %s: %v", s.Artifacts, written)
	}
	return err
}

// write keeps the request as it was last, also where the step was cancelled.
func (s *Step) write() error {
	text, err := s.asked.YAML(context.Background())
	if err != nil || text == nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.Artifacts, "promotionrequest.yaml"), text, 0o644)
}

// Name is that of ci-operator's own step, whose place this takes.
func (s *Step) Name() string { return "[promotion]" }

// Description is a line for people.
func (s *Step) Description() string {
	return fmt.Sprintf("Promote %d images", len(s.Request.Spec.Images))
}

// Requires are the steps whose images are promoted.
func (s *Step) Requires() []Link { return s.After }

// Creates is nothing that another step of the job could need.
func (s *Step) Creates() []Link { return nil }

// Provides nothing.
func (s *Step) Provides() map[string]func() (string, error) { return nil }

// Objects is the request.
func (s *Step) Objects() []client.Object { return []client.Object{s.Request} }

// SubTests are the results of the images, once the step has run.
func (s *Step) SubTests() []promotion.Result {
	if s.asked == nil {
		return nil
	}
	return s.asked.Results(s.err)
}
