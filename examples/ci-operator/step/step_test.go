package step

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"promotion.ci.openshift.io/api/promotion"
	"promotion.ci.openshift.io/api/v1alpha1"
)

func step(t *testing.T) *Step {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	request := &v1alpha1.PromotionRequest{}
	request.Namespace, request.Name = "ci-promotions", "job-1"
	request.Spec.Images = []v1alpha1.ImageSpec{{Source: "x/build:cli", Float: "x/ci:cli"}}
	cluster := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.PromotionRequest{}).Build()
	return &Step{Client: cluster, Request: request, Until: v1alpha1.ConditionComplete, Artifacts: t.TempDir(), Log: t.Logf}
}

// ends gives the request a condition as soon as it is there, as the controller does.
func (s *Step) ends(t *testing.T, condition, reason string, phase v1alpha1.Phase) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		found := &v1alpha1.PromotionRequest{}
		if s.Client.Get(context.Background(), client.ObjectKeyFromObject(s.Request), found) != nil {
			continue
		}
		found.Status.Images = []v1alpha1.ImageStatus{{Float: "x/ci:cli", Phase: phase, Reason: reason}}
		found.Status.Conditions = []metav1.Condition{{Type: condition, Status: metav1.ConditionTrue, Reason: reason, Message: "so it ended"}}
		if err := s.Client.Status().Update(context.Background(), found); err != nil {
			t.Error(err)
		}
		return
	}
	t.Error("no request came")
}

func TestAStepStagesThenPromotesWhatWasStaged(t *testing.T) {
	step := step(t)
	program := filepath.Join(t.TempDir(), "promotion-controller")
	script := `#!/bin/sh
sed -n 's#x/build:cli#x/ci@sha256:` + strings.Repeat("a", 64) + `#; s#.*{"kind#{"kind#; /kind/s#^\(.*\)$#{"items":[\1]}#p'
`
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	step.Stager.Program = program
	if err := step.Validate(); err != nil {
		t.Fatal(err)
	}
	go step.ends(t, v1alpha1.ConditionComplete, "Promoted", v1alpha1.PhasePosted)
	if err := step.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	created := &v1alpha1.PromotionRequest{}
	if err := step.Client.Get(context.Background(), client.ObjectKeyFromObject(step.Request), created); err != nil {
		t.Fatal(err)
	}
	if got := created.Spec.Images[0].Source; got != "x/ci@sha256:"+strings.Repeat("a", 64) {
		t.Error(got)
	}
	if got := step.SubTests(); len(got) != 1 || got[0].Phase != v1alpha1.PhasePosted || got[0].Reason != "" {
		t.Errorf("%+v", got)
	}
	if text, err := os.ReadFile(filepath.Join(step.Artifacts, "promotionrequest.yaml")); err != nil || !strings.Contains(string(text), "Promoted") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestAFailureIsCountedAsPromotingImagesWithTheRequestsReason(t *testing.T) {
	step := step(t)
	go step.ends(t, v1alpha1.ConditionFailed, "SourceGone", v1alpha1.PhaseFailed)
	err := step.Run(context.Background())
	var failure *Failure
	if !errors.As(err, &failure) || failure.Reason != "promoting_images:SourceGone" || promotion.ReasonOf(err) != "SourceGone" {
		t.Errorf("%v", err)
	}
	if got := step.SubTests(); len(got) != 1 || got[0].Reason != "SourceGone" {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsNotStagedIsNotAskedFor(t *testing.T) {
	step := step(t)
	step.Stager.Program = "/nowhere/promotion-controller"
	err := step.Run(context.Background())
	var failure *Failure
	if !errors.As(err, &failure) || failure.Reason != "promoting_images:StageFailed" {
		t.Errorf("%v", err)
	}
	if err := step.Client.Get(context.Background(), client.ObjectKeyFromObject(step.Request), &v1alpha1.PromotionRequest{}); err == nil {
		t.Error("it was created")
	}
	if got := step.SubTests(); len(got) != 1 || got[0].Reason != promotion.ReasonStageFailed {
		t.Errorf("%+v", got)
	}
}

func TestAStepThatCannotRunSaysSoBefore(t *testing.T) {
	for want, change := range map[string]func(*Step){
		"no client":         func(s *Step) { s.Client = nil },
		"no name":           func(s *Step) { s.Request.Name = "" },
		"promotes no image": func(s *Step) { s.Request.Spec.Images = nil },
		"Staged or":         func(s *Step) { s.Until = "Posted" },
	} {
		step := step(t)
		change(step)
		if err := step.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	step := step(t)
	if step.Name() == "" || !strings.Contains(step.Description(), "1 images") || len(step.Objects()) != 1 || len(step.Requires())+len(step.Creates())+len(step.Provides()) > 0 {
		t.Errorf("%+v", step)
	}
}
