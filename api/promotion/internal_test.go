package promotion

import (
	"encoding/xml"
	"reflect"
	"strings"
	"testing"

	"promotion.ci.openshift.io/api/v1alpha1"
)

const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func image(float string, phase v1alpha1.Phase) v1alpha1.ImageStatus {
	status := v1alpha1.ImageStatus{Float: float, Phase: phase, Source: &v1alpha1.SourceStatus{Digest: digest}}
	if phase == v1alpha1.PhasePosted {
		repository, _, _ := strings.Cut(float, ":")
		status.Promoted = repository + "@" + digest
	}
	return status
}

func TestSpecsThatAskForTheSameDoNotDifferAndOthersSayWhere(t *testing.T) {
	yes, ttl := true, int32(5)
	one := v1alpha1.PromotionRequestSpec{Images: []v1alpha1.ImageSpec{{Source: "a", Float: "b"}}, Latch: v1alpha1.LatchTogether}
	other := *one.DeepCopy()
	other.Suspend, other.Cancel, other.TTLSecondsAfterFinished = &yes, &yes, &ttl
	if got := difference(one, other); len(got) > 0 {
		t.Errorf("%q", got)
	}
	other.Images[0].Source, other.Latch, other.PushSecret = "c", "", &v1alpha1.SecretRef{Name: "s"}
	if got := difference(one, other); !reflect.DeepEqual(got, []string{"images", "latch", "pushSecret"}) {
		t.Errorf("%q", got)
	}
}

func TestWhatAnOlderDefinitionDroppedIsNamed(t *testing.T) {
	sent := map[string]any{"images": []any{map[string]any{"float": "f", "replaces": "None"}}, "gates": []any{"tests"}, "suspend": true}
	kept := map[string]any{"images": []any{map[string]any{"float": "f", "source": "filled in"}}, "suspend": true, "attempts": 5.0}
	got := lacking("spec", sent, kept)
	want := []string{"spec.gates[0]", "spec.images[0].replaces"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if got := lacking("spec", sent, sent); len(got) > 0 {
		t.Errorf("%v", got)
	}
}

func TestEachImageIsACaseAndSaysWhyItFailed(t *testing.T) {
	gone := image("x/ci:gone", v1alpha1.PhaseFailed)
	gone.Reason, gone.Message = "SourceGone", `"x" <is> gone`
	images := []v1alpha1.ImageStatus{image("x/ci:done", v1alpha1.PhasePosted), gone, image("x/ci:waits", v1alpha1.PhaseIncoming)}
	request := &v1alpha1.PromotionRequest{Status: v1alpha1.PromotionRequestStatus{Images: images}}
	for _, image := range images {
		request.Spec.Images = append(request.Spec.Images, v1alpha1.ImageSpec{Source: "x/y:z", Float: image.Float})
	}
	promotion := New(nil, request)
	promotion.last, promotion.finished = request, map[string]float64{"x/ci:done": 2.5, "x/ci:gone": 1}
	read := func(failed error) testSuite {
		text, err := promotion.JUnit(failed)
		if err != nil {
			t.Fatal(err)
		}
		var suite testSuite
		if err := xml.Unmarshal(text, &suite); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return suite
	}
	suite := read(&Error{"Timeout", "too long"})
	if suite.Tests != 3 || suite.Failures != 2 || len(suite.Cases) != 3 {
		t.Errorf("%+v", suite)
	}
	if done := suite.Cases[0]; done.Name != "x/ci:done" || done.Time != "2.5" || done.Failure != nil {
		t.Errorf("%+v", done)
	}
	if got := suite.Cases[1]; got.Failure == nil || *got.Failure != (testFailure{"SourceGone", `"x" <is> gone`}) {
		t.Errorf("%+v", got)
	}
	if got := suite.Cases[2]; got.Failure == nil || *got.Failure != (testFailure{"Timeout", "Incoming when the job ended: too long"}) {
		t.Errorf("%+v", got)
	}
	// What was waited for came about: an image that is on its way is where it should be.
	if suite := read(nil); suite.Failures != 1 || suite.Cases[2].Failure != nil {
		t.Errorf("%+v", suite)
	}
	// Nothing was ever created.
	promotion.last, promotion.finished = nil, nil
	if suite := read(&Error{"DifferentRequest", "it is there"}); suite.Failures != 3 || suite.Cases[0].Failure.Type != "DifferentRequest" {
		t.Errorf("%+v", suite)
	}
}
