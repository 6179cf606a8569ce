package main

import (
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"promotion.ci.openshift.io/api/v1alpha1"
)

const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestAFloatNamesTheNamespaceTheImageStreamAndItsTag(t *testing.T) {
	for float, want := range map[string]struct{ namespace, stream, tag string }{
		"quay.io/openshift/ci:ocp_4.21_cli":                 {"ocp", "4.21", "cli"},
		"quay.io/openshift/ci:ocp-priv_4.21-priv_cli":       {"ocp-priv", "4.21-priv", "cli"},
		"quay.io/openshift/ci:origin_scos-4.21_ovn_kube__x": {"origin", "scos-4.21", "ovn_kube__x"},
		"localhost:5000/ci:ci_boskos_latest":                {"ci", "boskos", "latest"},
	} {
		got, ok := parseFloat(float)
		if !ok || got != (streamTag{want.namespace, want.stream, want.tag, float, ""}) {
			t.Errorf("%s: %v %v", float, got, ok)
		}
	}
	for _, float := range []string{"localhost:5000/ci:ocp", "x/ci:ocp_4.21", "x/ci:ocp__cli", "x/ci:ocp_4.21_"} {
		if got, ok := parseFloat(float); ok {
			t.Errorf("%s: %v", float, got)
		}
	}
}

func image(float string, phase v1alpha1.Phase) v1alpha1.ImageStatus {
	status := v1alpha1.ImageStatus{Float: float, Phase: phase, Source: &v1alpha1.SourceStatus{Digest: digest}}
	if phase == v1alpha1.PhasePosted {
		repository, _, _ := strings.Cut(float, ":")
		status.Promoted = repository + "@" + digest
	}
	return status
}

func TestOnlyWhatWasPostedInAPayloadNamespaceIsReferredTo(t *testing.T) {
	unchanged := image("quay.io/openshift/ci:ocp_4.21_same", v1alpha1.PhasePosted)
	unchanged.Unchanged = true
	images := []v1alpha1.ImageStatus{
		image("quay.io/openshift/ci:ocp_4.21_cli", v1alpha1.PhasePosted),
		unchanged,
		image("quay.io/openshift/ci:ci_boskos_latest", v1alpha1.PhasePosted),
		image("quay.io/openshift/ci:origin_4.21_cli", v1alpha1.PhaseFailed),
		image("quay.io/openshift/ci:origin_4.21_tests", v1alpha1.PhaseLatched),
		image("quay.io/openshift/ci:ocp-priv", v1alpha1.PhasePosted),
	}
	tags, unnamed := streamTags(images, "")
	var commands []string
	for _, tag := range tags {
		commands = append(commands, tag.command())
	}
	const set = "oc tag --source=docker --reference --reference-policy=source --import-mode=PreserveOriginal "
	want := []string{
		set + "quay.io/openshift/ci@" + digest + " ocp/4.21:cli",
		set + "quay.io/openshift/ci@" + digest + " ocp/4.21:same",
	}
	if !reflect.DeepEqual(commands, want) {
		t.Errorf("%q", commands)
	}
	if !reflect.DeepEqual(unnamed, []string{"quay.io/openshift/ci:ocp-priv"}) {
		t.Errorf("%q", unnamed)
	}
	tags, _ = streamTags(images[:1], "quay-proxy.ci.openshift.org")
	if tags[0].image != "quay-proxy.ci.openshift.org/openshift/ci@"+digest {
		t.Errorf("%v", tags[0])
	}
}

func TestReferencesArePrintedAsObjectsThatSetOneTagEach(t *testing.T) {
	tags, _ := streamTags([]v1alpha1.ImageStatus{image("quay.io/openshift/ci:ocp_4.21_cli", v1alpha1.PhasePosted)}, "")
	const want = `
apiVersion: v1
kind: List
items:
- apiVersion: image.openshift.io/v1
  kind: ImageStreamTag
  metadata: {namespace: ocp, name: "4.21:cli"}
  tag:
    name: cli
    annotations: {ci.openshift.io/float: "quay.io/openshift/ci:ocp_4.21_cli"}
    from: {kind: DockerImage, name: "quay.io/openshift/ci@` + digest + `"}
    reference: true
    importPolicy: {importMode: PreserveOriginal}
    referencePolicy: {type: Source}
`
	for _, format := range []string{"yaml", "json"} {
		var printed strings.Builder
		if err := writeTags(&printed, tags, format); err != nil {
			t.Fatal(err)
		}
		if isJSON := strings.HasPrefix(printed.String(), "{"); isJSON != (format == "json") {
			t.Errorf("as %s:\n%s", format, printed.String())
		}
		var got, wanted any
		if err := yaml.Unmarshal([]byte(printed.String()), &got); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal([]byte(want), &wanted); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, wanted) {
			t.Errorf("as %s:\n%s", format, printed.String())
		}
	}
}

func TestAJobsNameIsAdmittedAndStandsForTheJobAlone(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, c := range []struct{ job, build, want string }{
		{"branch-ci-openshift-cli-main-images", "1993", "branch-ci-openshift-cli-main-images-1993"},
		{"Branch_CI.release-4.21", "7", "branch-ci-release-4-21-7"},
		{"job", "", ""},
		{"", "7", ""},
	} {
		if got := jobName(c.job, c.build); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	a, b := jobName(long, "1"), jobName(long, "2")
	if len(a) != nameMax || a == b || a != jobName(long, "1") {
		t.Errorf("%q %q", a, b)
	}
}

func arguments(t *testing.T, environment map[string]string, args ...string) (*options, error) {
	t.Helper()
	return parse(args, func(name string) string { return environment[name] }, io.Discard)
}

func TestAFileAndFlagsMakeOneRequest(t *testing.T) {
	file := filepath.Join(t.TempDir(), "request.yaml")
	text := `
apiVersion: ci.openshift.io/v1alpha1
kind: PromotionRequest
metadata: {name: from-file, namespace: ci, labels: {team: a}}
spec:
  latch: Independently
  images: [{source: x/a@` + digest + `, float: x/b:c}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	options, err := arguments(t, map[string]string{"JOB_NAME": "j", "BUILD_ID": "1", "ARTIFACT_DIR": "/a"},
		"-f", file, "--latch=Together", "--on-failure", "Rollback", "--push-secret=push", "--deadline=90s", "--until=Staged", "x/d:e=x/b:f")
	if err != nil {
		t.Fatal(err)
	}
	request := options.request
	if request.Name != "from-file" || request.Namespace != "ci" || request.Labels["team"] != "a" || options.until != "Staged" || options.artifacts != "/a" {
		t.Errorf("%+v", options)
	}
	want := v1alpha1.PromotionRequestSpec{
		Images:          []v1alpha1.ImageSpec{{Source: "x/a@" + digest, Float: "x/b:c"}, {Source: "x/d:e", Float: "x/b:f"}},
		Latch:           v1alpha1.LatchTogether,
		OnFailure:       v1alpha1.OnFailureRollback,
		PushSecret:      &v1alpha1.SecretRef{Name: "push"},
		DeadlineSeconds: 90,
	}
	if !reflect.DeepEqual(request.Spec, want) {
		t.Errorf("%+v", request.Spec)
	}
}

func TestAWrongCallSaysWhatToWrite(t *testing.T) {
	misspelt := filepath.Join(t.TempDir(), "request.yaml")
	if err := os.WriteFile(misspelt, []byte("apiVersion: ci.openshift.io/v1alpha1\nkind: PromotionRequest\nspec: {latched: Together}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"no image":          {"--name=x"},
		"no name":           {"a=b"},
		"write SOURCE=":     {"--name=x", "a"},
		"Staged or":         {"--name=x", "--until=Posted", "a=b"},
		"1m to 24h":         {"--name=x", "--deadline=2562047h", "a=b"},
		"text, yaml or":     {"--name=x", "-o", "wide", "a=b"},
		"-nonsense":         {"--nonsense"},
		"name the program":  {"--name=x", "--stage-arg=y", "a=b"},
		`field "latched"`:   {"-f", misspelt, "a=b"},
		"no such file":      {"-f", misspelt + "s", "a=b"},
		"invalid value \"x": {"--timeout=x", "a=b"},
	} {
		if _, err := arguments(t, nil, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestFloatsOfANamespaceAreFollowedAndWhatTheControllerSetIsNotSetAgain(t *testing.T) {
	env := func(string) string { return "" }
	args := []string{"--name", "x", "--image-streams", "ocp", "r.io/p:a=quay.io/openshift/ci:ocp_4.21_cli", "r.io/p:b=quay.io/openshift/ci:ci_x_latest"}
	options, err := parse(args, env, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	spec := options.request.Spec
	got := []string{spec.ImageStreamNamespace, spec.Images[0].ImageStreamTag, spec.Images[1].ImageStreamTag}
	if want := []string{"ocp", "4.21:cli", ""}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
	args[3] = "origin"
	if _, err := parse(args, env, io.Discard); err == nil || !strings.Contains(err.Error(), "--image-streams origin") {
		t.Errorf("got %v", err)
	}
	for state, want := range map[string]int{"Set": 0, "Superseded": 0, "Failed": 1} {
		posted := image("quay.io/openshift/ci:ocp_4.21_cli", v1alpha1.PhasePosted)
		posted.Reference = &v1alpha1.ReferenceStatus{State: state}
		if tags, _ := streamTags([]v1alpha1.ImageStatus{posted}, ""); len(tags) != want {
			t.Errorf("%s: %v", state, tags)
		}
	}
}
