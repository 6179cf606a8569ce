package main

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"promotion.ci.openshift.io/api/v1alpha1"
)

// payloadNamespaces have the ImageStreams that release payloads are built from.
var payloadNamespaces = []string{"ocp", "origin", "ocp-priv"}

// streamTag is an ImageStream's tag and the image it should refer to.
type streamTag struct {
	namespace, stream, tag string
	float, image           string
}

// report says what became of the images, on stdout and in the artifacts.
func (j *job) report(stdout io.Writer, failed *failure) error {
	var problems []error
	var images []v1alpha1.ImageStatus
	if j.last != nil {
		images = j.last.Status.Images
	}
	tags, unnamed := streamTags(images, j.options.pullHost)
	for _, float := range unnamed {
		j.log.Printf("warning: %s is not named NAMESPACE_IMAGESTREAM_TAG: no ImageStream reference", float)
	}
	switch j.options.output {
	case "text":
		writeImages(stdout, images)
		for _, tag := range tags {
			fmt.Fprintln(stdout, tag.command())
		}
	default:
		writeImages(j.log.Writer(), images)
		problems = append(problems, writeTags(stdout, tags, j.options.output))
	}
	if directory := j.options.artifacts; directory != "" {
		problems = append(problems,
			os.MkdirAll(directory, 0o755),
			writeFile(directory, "junit_promotion.xml", func() ([]byte, error) { return j.junit(failed) }),
			writeFile(directory, "promotionrequest.yaml", j.object),
		)
	}
	return errors.Join(problems...)
}

// writeImages prints one line for each image: its float, where it stands, and the digest.
func writeImages(to io.Writer, images []v1alpha1.ImageStatus) {
	for _, image := range images {
		digest := "-"
		if image.Source != nil {
			digest = image.Source.Digest
		}
		how := string(image.Phase)
		if image.Reason != "" && image.Reason != how {
			how += " (" + image.Reason + ")"
		}
		fmt.Fprintln(to, image.Float, how, digest)
	}
}

// streamTags are the tags that the caller has to set for posted images, unchanged ones included, and the floats of payload
// namespaces whose name has no ImageStream.
func streamTags(images []v1alpha1.ImageStatus, pullHost string) (tags []streamTag, unnamed []string) {
	for _, image := range images {
		if image.Phase != v1alpha1.PhasePosted || image.Promoted == "" {
			continue
		}
		tag, ok := parseFloat(image.Float)
		if !slices.Contains(payloadNamespaces, tag.namespace) {
			continue
		}
		if !ok {
			unnamed = append(unnamed, image.Float)
			continue
		}
		tag.image = image.Promoted
		if _, path, found := strings.Cut(image.Promoted, "/"); found && pullHost != "" {
			tag.image = pullHost + "/" + path
		}
		tags = append(tags, tag)
	}
	return tags, unnamed
}

// parseFloat reads the tag of a float, NAMESPACE_IMAGESTREAM_TAG. A namespace has no underscore, nor do the ImageStreams of
// payloads, which are named after releases (4.21, 4.21-priv, scos-4.21). All that follows is the tag, underscores included.
func parseFloat(float string) (streamTag, bool) {
	parts := strings.SplitN(float[strings.LastIndex(float, ":")+1:], "_", 3)
	tag := streamTag{namespace: parts[0], float: float}
	if len(parts) < 3 || parts[1] == "" || parts[2] == "" {
		return tag, false
	}
	tag.stream, tag.tag = parts[1], parts[2]
	return tag, true
}

// command sets the tag as the script this replaces did.
func (t streamTag) command() string {
	return fmt.Sprintf("oc tag --source=docker --reference --reference-policy=source --import-mode=PreserveOriginal %s %s/%s:%s",
		t.image, t.namespace, t.stream, t.tag)
}

// object is the same as an ImageStreamTag. Unlike an ImageStream it has one tag only, so applying it drops no other.
func (t streamTag) object() map[string]any {
	return map[string]any{
		"apiVersion": "image.openshift.io/v1",
		"kind":       "ImageStreamTag",
		"metadata":   map[string]any{"namespace": t.namespace, "name": t.stream + ":" + t.tag},
		"tag": map[string]any{
			"name":            t.tag,
			"annotations":     map[string]any{v1alpha1.SchemeGroupVersion.Group + "/float": t.float},
			"from":            map[string]any{"kind": "DockerImage", "name": t.image},
			"reference":       true,
			"importPolicy":    map[string]any{"importMode": "PreserveOriginal"},
			"referencePolicy": map[string]any{"type": "Source"},
		},
	}
}

func writeTags(to io.Writer, tags []streamTag, format string) error {
	items := make([]any, 0, len(tags))
	for _, tag := range tags {
		items = append(items, tag.object())
	}
	list := map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
	text, err := json.MarshalIndent(list, "", "  ")
	if err == nil && format == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(to, strings.TrimSuffix(string(text), "\n"))
	return err
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

// junit has one case for each image. An image passes when it got where the job wanted it.
func (j *job) junit(failed *failure) ([]byte, error) {
	suite := testSuite{Name: "promotion", Tests: len(j.options.request.Spec.Images)}
	known := map[string]v1alpha1.ImageStatus{}
	var age float64
	if j.last != nil {
		age = time.Since(j.last.CreationTimestamp.Time).Seconds()
		for _, image := range j.last.Status.Images {
			known[image.Float] = image
		}
	}
	var total float64
	for _, image := range j.options.request.Spec.Images {
		took, done := j.finished[image.Float]
		if !done {
			took = age
		}
		total = max(total, took)
		suite.Cases = append(suite.Cases, testCase{
			Name:    image.Float,
			Time:    fmt.Sprintf("%.1f", took),
			Failure: imageFailure(known[image.Float], failed),
		})
		if suite.Cases[len(suite.Cases)-1].Failure != nil {
			suite.Failures++
		}
	}
	suite.Time = fmt.Sprintf("%.1f", total)
	text, err := xml.MarshalIndent(suite, "", "  ")
	return append([]byte(xml.Header), append(text, '\n')...), err
}

// imageFailure says why an image is not where the job wanted it: for a reason of its own, or because the job stopped waiting.
func imageFailure(image v1alpha1.ImageStatus, failed *failure) *testFailure {
	switch image.Phase {
	case v1alpha1.PhasePosted, v1alpha1.PhasePlanned:
		return nil
	case v1alpha1.PhaseFailed, v1alpha1.PhaseCancelled:
		reason := cmp.Or(image.Reason, string(image.Phase))
		return &testFailure{reason, cmp.Or(image.Message, reason)}
	}
	if failed == nil {
		return nil
	}
	message := failed.message
	if image.Phase != "" {
		message = fmt.Sprintf("%s when the job ended: %s", image.Phase, cmp.Or(image.Message, message))
	}
	return &testFailure{failed.reason, message}
}

// object is the request as the API server has it, including fields that these types do not know; else as last seen.
func (j *job) object() ([]byte, error) {
	if j.last == nil {
		return nil, nil
	}
	ctx, stop := context.WithTimeout(context.Background(), callTimeout)
	defer stop()
	request := j.client.GetClient().Get().Namespace(j.client.GetNamespace()).Resource(v1alpha1.Resource).Name(j.last.Name)
	var same v1alpha1.PromotionRequest
	text, err := request.Do(ctx).Raw()
	if err == nil && json.Unmarshal(text, &same) == nil && same.UID == j.last.UID {
		return yaml.JSONToYAML(text)
	}
	return yaml.Marshal(j.last)
}

// writeFile writes a file, if there is anything to write.
func writeFile(directory, name string, content func() ([]byte, error)) error {
	text, err := content()
	if err != nil || text == nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, name), text, 0o644)
}
