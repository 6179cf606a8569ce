package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"promotion.ci.openshift.io/api/promotion"
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
func report(asked *promotion.Promotion, options *options, logger *log.Logger, stdout io.Writer, failed error) error {
	var problems []error
	var images []v1alpha1.ImageStatus
	if request := asked.Request(); request != nil {
		images = request.Status.Images
	}
	tags, unnamed := streamTags(images, options.pullHost)
	for _, float := range unnamed {
		logger.Printf("warning: %s is not named NAMESPACE_IMAGESTREAM_TAG: no ImageStream reference", float)
	}
	switch options.output {
	case "text":
		writeImages(stdout, images)
		for _, tag := range tags {
			fmt.Fprintln(stdout, tag.command())
		}
	default:
		writeImages(logger.Writer(), images)
		problems = append(problems, writeTags(stdout, tags, options.output))
	}
	if directory := options.artifacts; directory != "" {
		problems = append(problems,
			os.MkdirAll(directory, 0o755),
			writeFile(directory, "junit_promotion.xml", func() ([]byte, error) { return asked.JUnit(failed) }),
			writeFile(directory, "promotionrequest.yaml", func() ([]byte, error) { return asked.YAML(context.Background()) }),
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

// streamTags are the tags that the caller has to set for posted images, unchanged ones included, where the controller has not; and the floats of payload
// namespaces whose name has no ImageStream.
func streamTags(images []v1alpha1.ImageStatus, pullHost string) (tags []streamTag, unnamed []string) {
	for _, image := range images {
		if image.Phase != v1alpha1.PhasePosted || image.Promoted == "" {
			continue
		}
		if image.Reference != nil && image.Reference.State != "Failed" {
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

// writeFile writes a file, if there is anything to write.
func writeFile(directory, name string, content func() ([]byte, error)) error {
	text, err := content()
	if err != nil || text == nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, name), text, 0o644)
}
