package promotion

import (
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"promotion.ci.openshift.io/api/v1alpha1"
)

// Result is what became of one image.
type Result struct {
	// Float is the float that the image goes to.
	Float string
	// Phase is where it stands; empty before the controller has seen it.
	Phase v1alpha1.Phase
	// Digest is what the source named; empty until it is known.
	Digest string
	// Promoted is the image by digest in the float's repository, once it is posted: HOST/REPOSITORY@sha256:DIGEST.
	Promoted string
	// Reason is why it is not where it was waited for: its own, or that of the whole. Empty where it is.
	Reason string
	// Message is the same for people.
	Message string
	// Took is how long after the request's creation the image was finished, or the time until now.
	Took time.Duration
}

// Results are what became of the images, in the order of the request. err is what Run, Ensure, Wait or Stage returned.
func (p *Promotion) Results(err error) []Result {
	known := map[string]v1alpha1.ImageStatus{}
	var age float64
	if p.last != nil {
		age = time.Since(p.last.CreationTimestamp.Time).Seconds()
		for _, image := range p.last.Status.Images {
			known[image.Float] = image
		}
	}
	results := make([]Result, 0, len(p.wanted.Spec.Images))
	for _, wanted := range p.wanted.Spec.Images {
		image := known[wanted.Float]
		took, done := p.finished[wanted.Float]
		if !done {
			took = age
		}
		result := Result{
			Float:    wanted.Float,
			Phase:    image.Phase,
			Promoted: image.Promoted,
			Took:     time.Duration(took * float64(time.Second)),
		}
		if image.Source != nil {
			result.Digest = image.Source.Digest
		}
		result.Reason, result.Message = why(image, err)
		results = append(results, result)
	}
	return results
}

// why an image is not where it was waited for: for a reason of its own, or because the wait ended.
func why(image v1alpha1.ImageStatus, err error) (reason, message string) {
	switch image.Phase {
	case v1alpha1.PhasePosted, v1alpha1.PhasePlanned:
		return "", ""
	case v1alpha1.PhaseFailed, v1alpha1.PhaseCancelled:
		reason := cmp.Or(image.Reason, string(image.Phase))
		return reason, cmp.Or(image.Message, reason)
	}
	if err == nil {
		return "", ""
	}
	message = messageOf(err)
	if image.Phase != "" {
		message = fmt.Sprintf("%s when the job ended: %s", image.Phase, cmp.Or(image.Message, message))
	}
	return ReasonOf(err), message
}

type testSuite struct {
	XMLName  xml.Name   `xml:"testsuite"`
	Name     string     `xml:"name,attr"`
	Tests    int        `xml:"tests,attr"`
	Failures int        `xml:"failures,attr"`
	Time     string     `xml:"time,attr"`
	Cases    []testCase `xml:"testcase"`
}

type testCase struct {
	Name    string       `xml:"name,attr"`
	Time    string       `xml:"time,attr"`
	Failure *testFailure `xml:"failure"`
}

type testFailure struct {
	Type    string `xml:"type,attr"`
	Message string `xml:"message,attr"`
}

// JUnit has one case for each image. An image passes when it got where it was waited for.
func (p *Promotion) JUnit(err error) ([]byte, error) {
	results := p.Results(err)
	suite := testSuite{Name: "promotion", Tests: len(results)}
	var total time.Duration
	for _, result := range results {
		total = max(total, result.Took)
		test := testCase{Name: result.Float, Time: seconds(result.Took)}
		if result.Reason != "" {
			test.Failure = &testFailure{result.Reason, result.Message}
			suite.Failures++
		}
		suite.Cases = append(suite.Cases, test)
	}
	suite.Time = seconds(total)
	text, err := xml.MarshalIndent(suite, "", "  ")
	return append([]byte(xml.Header), append(text, '\n')...), err
}

func seconds(took time.Duration) string {
	return fmt.Sprintf("%.1f", took.Seconds())
}

// YAML is the request as the API server has it, including fields that these types do not know; else as last seen. It is nil before
// the request is known to exist.
func (p *Promotion) YAML(ctx context.Context) ([]byte, error) {
	if p.last == nil {
		return nil, nil
	}
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	stored := &unstructured.Unstructured{}
	stored.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("PromotionRequest"))
	if err := p.client.Get(ctx, client.ObjectKeyFromObject(p.last), stored); err == nil && stored.GetUID() == p.last.UID {
		return yaml.Marshal(stored)
	}
	return yaml.Marshal(p.last)
}
