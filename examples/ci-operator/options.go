package main

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"promotion.ci.openshift.io/api/promotion"
	"promotion.ci.openshift.io/api/v1alpha1"
)

// nameMax leaves room for what events add to the request's name.
const nameMax = 200

const usage = `usage: ci-operator [flags] [SOURCE=FLOAT ...]

Has images promoted by the promotion-controller of a cluster, and waits for it.

`

// options are the command line.
type options struct {
	// request is what to create; its namespace may be empty until the kubeconfig is read.
	request     *v1alpha1.PromotionRequest
	kubeconfig  string
	until       string
	timeout     time.Duration
	cancelGrace time.Duration
	artifacts   string
	output      string
	pullHost    string
	// stager copies the sources first; without a program nothing is staged.
	stager promotion.Stager
}

// parse reads the command line. It reports an error once, and prints the usage to stderr only on request.
func parse(args []string, getenv func(string) string, stderr io.Writer) (*options, error) {
	options := &options{}
	request := &v1alpha1.PromotionRequest{}
	request.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("PromotionRequest"))
	flags := flag.NewFlagSet("ci-operator", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var file, name, namespace, latch, onFailure, referrers, pullSecret, pushSecret, streams string
	var deadline time.Duration
	flags.StringVar(&file, "f", "", "`FILE` with a PromotionRequest; flags and arguments are added to it")
	flags.StringVar(&name, "name", "", "the request's `NAME` (default: made of $JOB_NAME and $BUILD_ID)")
	flags.StringVar(&namespace, "namespace", "", "the request's `NAMESPACE` (default: the kubeconfig's)")
	flags.StringVar(&latch, "latch", "", "Together or Independently")
	flags.StringVar(&onFailure, "on-failure", "", "Hold or Rollback")
	flags.StringVar(&referrers, "referrers", "", "Ignore, BestEffort or Require")
	flags.StringVar(&pullSecret, "pull-secret", "", "the `SECRET` to pull sources with")
	flags.StringVar(&pushSecret, "push-secret", "", "the `SECRET` to push floats with")
	flags.DurationVar(&deadline, "deadline", 0, "how long the promotion may take, 1m to 24h (default: the API's)")
	flags.StringVar(&options.kubeconfig, "kubeconfig", "", "`FILE` (default: $KUBECONFIG, ~/.kube/config, the pod's)")
	flags.StringVar(&options.until, "until", v1alpha1.ConditionComplete, "wait for Staged or Complete")
	flags.DurationVar(&options.timeout, "timeout", 3*time.Hour, "how long to wait; the request goes on without the job")
	flags.DurationVar(&options.cancelGrace, "cancel-grace", 30*time.Second, "how long to wait for the end of a cancelled request")
	flags.StringVar(&options.artifacts, "artifact-dir", getenv("ARTIFACT_DIR"), "`DIR` for junit_promotion.xml and promotionrequest.yaml")
	flags.StringVar(&options.output, "o", "text", "text, yaml or json: format of ImageStream references")
	flags.StringVar(&options.pullHost, "pull-host", "", "`HOST` that ImageStreams refer to instead of the float's")
	flags.StringVar(&streams, "image-streams", "", "let the controller set ImageStream tags in this `NAMESPACE`, for floats named NAMESPACE_IMAGESTREAM_TAG")
	flags.StringVar(&options.stager.Program, "stage", "", "stage the sources first, from here, with this `PROGRAM`: promotion-controller")
	flags.Func("stage-arg", "`ARGUMENT` for the staging program, such as --registry-config=FILE (repeatable)", func(argument string) error {
		options.stager.Arguments = append(options.stager.Arguments, argument)
		return nil
	})
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stderr, usage)
		flags.SetOutput(stderr)
		flags.PrintDefaults()
		return nil, err
	case err != nil:
		return nil, err
	}

	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("-f: %w", err)
		}
		if err := yaml.UnmarshalStrict(text, request); err != nil {
			return nil, fmt.Errorf("-f %s: %w", file, err)
		}
		if kind := v1alpha1.SchemeGroupVersion.WithKind("PromotionRequest"); request.GroupVersionKind() != kind {
			return nil, fmt.Errorf("-f %s: it is no PromotionRequest of %s", file, kind.GroupVersion())
		}
	}
	for _, pair := range flags.Args() {
		source, float, ok := strings.Cut(pair, "=")
		if !ok || source == "" || float == "" {
			return nil, fmt.Errorf("%q: write SOURCE=FLOAT", pair)
		}
		request.Spec.Images = append(request.Spec.Images, v1alpha1.ImageSpec{Source: source, Float: float})
	}
	if len(request.Spec.Images) == 0 {
		return nil, errors.New("no image: write SOURCE=FLOAT, or name a file with -f")
	}
	if streams != "" {
		if err := follow(&request.Spec, streams); err != nil {
			return nil, fmt.Errorf("--image-streams %s: %w", streams, err)
		}
	}
	override(&request.Name, name)
	override(&request.Namespace, namespace)
	override(&request.Spec.Latch, latch)
	override(&request.Spec.OnFailure, onFailure)
	override(&request.Spec.Referrers, referrers)
	if pullSecret != "" {
		request.Spec.PullSecret = &v1alpha1.SecretRef{Name: pullSecret}
	}
	if pushSecret != "" {
		request.Spec.PushSecret = &v1alpha1.SecretRef{Name: pushSecret}
	}
	if deadline != 0 {
		if deadline < time.Minute || deadline > 24*time.Hour {
			return nil, fmt.Errorf("--deadline %s: write 1m to 24h", deadline)
		}
		request.Spec.DeadlineSeconds = int32(deadline / time.Second)
	}
	if request.Name == "" {
		request.Name = jobName(getenv("JOB_NAME"), getenv("BUILD_ID"))
	}
	if request.Name == "" {
		return nil, errors.New("no name: set --name, or both $JOB_NAME and $BUILD_ID")
	}
	if !slices.Contains([]string{v1alpha1.ConditionStaged, v1alpha1.ConditionComplete}, options.until) {
		return nil, fmt.Errorf("--until %s: write Staged or Complete", options.until)
	}
	if !slices.Contains([]string{"text", "yaml", "json"}, options.output) {
		return nil, fmt.Errorf("-o %s: write text, yaml or json", options.output)
	}
	if options.stager.Program == "" && len(options.stager.Arguments) > 0 {
		return nil, errors.New("--stage-arg: nothing is staged; name the program with --stage")
	}
	options.request = request
	return options, nil
}

func override[T ~string](to *T, value string) {
	if value != "" {
		*to = T(value)
	}
}

// jobName is the same for every run of one build of a job, and a valid Kubernetes name.
func jobName(job, build string) string {
	if job == "" || build == "" {
		return ""
	}
	whole := job + "-" + build
	name := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(whole), "-"), "-")
	if len(name) > nameMax {
		digest := fmt.Sprintf("%x", sha256.Sum256([]byte(whole)))[:10]
		name = strings.TrimRight(name[:nameMax-len(digest)-1], "-") + "-" + digest
	}
	return name
}

// follow has a tag of an ImageStream in a namespace follow each float that is named after one.
func follow(spec *v1alpha1.PromotionRequestSpec, namespace string) error {
	followed := false
	for index := range spec.Images {
		image := &spec.Images[index]
		if tag, ok := parseFloat(image.Float); ok && tag.namespace == namespace {
			image.ImageStreamTag, followed = tag.stream+":"+tag.tag, true
		}
	}
	if !followed {
		return errors.New("no float is named NAMESPACE_IMAGESTREAM_TAG of it; leave the flag out")
	}
	spec.ImageStreamNamespace = namespace
	return nil
}
