package promotion_test

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"promotion.ci.openshift.io/api/promotion"
	"promotion.ci.openshift.io/api/v1alpha1"
)

const (
	digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	float  = "quay.io/openshift/ci:ocp_4.21_cli"
)

// cluster is a fake API server with the types of v1alpha1.
func cluster(t *testing.T, functions interceptor.Funcs) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.PromotionRequest{})
	return builder.WithInterceptorFuncs(functions).Build()
}

func request() *v1alpha1.PromotionRequest {
	request := &v1alpha1.PromotionRequest{}
	request.Namespace, request.Name = "ci", "job-1"
	request.Spec.Images = []v1alpha1.ImageSpec{{Source: "quay.io/openshift/ci@" + digest, Float: float}}
	return request
}

// controller moves the request of a test, as the controller does.
type controller struct {
	t      *testing.T
	client client.WithWatch
}

// until waits until the request is as wanted, and gives it.
func (c controller) until(is func(*v1alpha1.PromotionRequest) bool) *v1alpha1.PromotionRequest {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		found := &v1alpha1.PromotionRequest{}
		err := c.client.Get(context.Background(), client.ObjectKeyFromObject(request()), found)
		if err == nil && is(found) {
			return found
		}
	}
	c.t.Error("the request never came to what was waited for")
	return nil
}

func there(*v1alpha1.PromotionRequest) bool { return true }

func cancelled(request *v1alpha1.PromotionRequest) bool {
	return request.Spec.Cancel != nil && *request.Spec.Cancel
}

// sets the status of the request: its phase, that of its image, and one condition that is True.
func (c controller) sets(phase v1alpha1.Phase, condition, reason string) {
	c.t.Helper()
	found := c.until(there)
	found.Status.Phase, found.Status.Progress = phase, "0/1"
	image := v1alpha1.ImageStatus{Float: float, Phase: phase, Source: &v1alpha1.SourceStatus{Digest: digest}}
	if phase == v1alpha1.PhasePosted {
		image.Promoted = "quay.io/openshift/ci@" + digest
	}
	if phase == v1alpha1.PhaseFailed {
		image.Reason, image.Message = reason, "it went wrong"
	}
	found.Status.Images = []v1alpha1.ImageStatus{image}
	found.Status.Conditions = []metav1.Condition{{Type: condition, Status: metav1.ConditionTrue, Reason: reason, Message: "it is " + reason}}
	if err := c.client.Status().Update(context.Background(), found); err != nil {
		c.t.Error(err)
	}
}

func asked(t *testing.T, client client.WithWatch) *promotion.Promotion {
	asked := promotion.New(client, request())
	asked.Log = func(format string, arguments ...any) { t.Logf(format, arguments...) }
	return asked
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(stop)
	return ctx
}

func TestAPromotionReturnsAtStagedAndAnotherRunAdoptsItAndSeesItComplete(t *testing.T) {
	client := cluster(t, interceptor.Funcs{})
	controller := controller{t, client}
	go controller.sets(v1alpha1.PhaseIncoming, v1alpha1.ConditionStaged, "Staged")
	first := asked(t, client)
	if err := first.Run(patient(t), v1alpha1.ConditionStaged); err != nil {
		t.Fatal(err)
	}
	if got := first.Results(nil)[0]; got.Phase != v1alpha1.PhaseIncoming || got.Reason != "" || got.Digest != digest {
		t.Errorf("%+v", got)
	}
	again := asked(t, client)
	go func() {
		time.Sleep(100 * time.Millisecond)
		controller.sets(v1alpha1.PhasePosted, v1alpha1.ConditionComplete, "Promoted")
	}()
	if err := again.Run(patient(t), v1alpha1.ConditionComplete); err != nil {
		t.Fatal(err)
	}
	want := "quay.io/openshift/ci@" + digest
	if got := again.Results(nil)[0]; got.Phase != v1alpha1.PhasePosted || got.Promoted != want {
		t.Errorf("%+v", got)
	}
	if text, err := again.YAML(patient(t)); err != nil || !strings.Contains(string(text), "phase: Posted") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestUnderANameThatStandsForSomethingElseNothingIsAdopted(t *testing.T) {
	other := request()
	other.Spec.Images[0].Float = "quay.io/openshift/ci:other"
	client := cluster(t, interceptor.Funcs{})
	if err := client.Create(patient(t), other); err != nil {
		t.Fatal(err)
	}
	err := asked(t, client).Run(patient(t), v1alpha1.ConditionComplete)
	if promotion.ReasonOf(err) != promotion.ReasonDifferentRequest || !strings.Contains(err.Error(), "differs in images") {
		t.Errorf("%v", err)
	}
}

func TestAFailureHasTheRequestsReasonAndEachImagesOwn(t *testing.T) {
	client := cluster(t, interceptor.Funcs{})
	go controller{t, client}.sets(v1alpha1.PhaseFailed, v1alpha1.ConditionFailed, "SourceGone")
	asked := asked(t, client)
	err := asked.Run(patient(t), v1alpha1.ConditionStaged)
	if promotion.ReasonOf(err) != "SourceGone" {
		t.Fatal(err)
	}
	text, err := asked.JUnit(err)
	if err != nil {
		t.Fatal(err)
	}
	var suite struct {
		Failures int `xml:"failures,attr"`
		Cases    []struct {
			Name    string `xml:"name,attr"`
			Failure struct {
				Type    string `xml:"type,attr"`
				Message string `xml:"message,attr"`
			} `xml:"failure"`
		} `xml:"testcase"`
	}
	if err := xml.Unmarshal(text, &suite); err != nil {
		t.Fatal(err)
	}
	if suite.Failures != 1 || suite.Cases[0].Name != float || suite.Cases[0].Failure.Type != "SourceGone" || suite.Cases[0].Failure.Message != "it went wrong" {
		t.Errorf("%s", text)
	}
}

func TestACancelledContextCancelsTheRequestAndWaitsForItsEnd(t *testing.T) {
	client := cluster(t, interceptor.Funcs{})
	controller := controller{t, client}
	ctx, cancel := context.WithCancel(patient(t))
	go func() {
		controller.until(there)
		cancel()
		controller.until(cancelled)
		controller.sets(v1alpha1.PhaseCancelled, v1alpha1.ConditionFailed, "Cancelled")
	}()
	if err := asked(t, client).Run(ctx, v1alpha1.ConditionComplete); promotion.ReasonOf(err) != "Cancelled" {
		t.Error(err)
	}
}

func TestACommittedRequestRunsToItsEndOrIsSaidToGoOn(t *testing.T) {
	for _, ends := range []bool{true, false} {
		client := cluster(t, interceptor.Funcs{})
		controller := controller{t, client}
		ctx, cancel := context.WithCancel(patient(t))
		go func() {
			found := controller.until(there)
			found.Status.Committed = true
			if err := client.Status().Update(context.Background(), found); err != nil {
				t.Error(err)
			}
			cancel()
			controller.until(cancelled)
			if ends {
				controller.sets(v1alpha1.PhasePosted, v1alpha1.ConditionComplete, "Promoted")
			}
		}()
		asked := asked(t, client)
		asked.CancelGrace = time.Minute
		if !ends {
			asked.CancelGrace = time.Second
		}
		err := asked.Run(ctx, v1alpha1.ConditionComplete)
		if ends && err != nil {
			t.Error(err)
		}
		if !ends && (promotion.ReasonOf(err) != promotion.ReasonInterrupted || !strings.Contains(err.Error(), "is committed and runs to its end")) {
			t.Error(err)
		}
	}
}

func TestAfterADeadlineTheRequestGoesOn(t *testing.T) {
	client := cluster(t, interceptor.Funcs{})
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	err := asked(t, client).Run(ctx, v1alpha1.ConditionComplete)
	if promotion.ReasonOf(err) != promotion.ReasonTimeout || !strings.Contains(err.Error(), "goes on without this job") {
		t.Error(err)
	}
	if found := (controller{t, client}).until(there); cancelled(found) {
		t.Error("it was cancelled")
	}
}

func TestADeletedRequestEndsTheWait(t *testing.T) {
	client := cluster(t, interceptor.Funcs{})
	go func() {
		found := controller{t, client}.until(there)
		time.Sleep(100 * time.Millisecond)
		if err := client.Delete(context.Background(), found); err != nil {
			t.Error(err)
		}
	}()
	if err := asked(t, client).Run(patient(t), v1alpha1.ConditionComplete); promotion.ReasonOf(err) != promotion.ReasonDeleted {
		t.Error(err)
	}
}

func TestFieldsThatTheServerDroppedAreNamed(t *testing.T) {
	older := interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			all := (&client.CreateOptions{}).ApplyOptions(options)
			if all.FieldValidation != metav1.FieldValidationStrict {
				return fmt.Errorf("fields that are not known are not refused: %+v", all)
			}
			object.(*v1alpha1.PromotionRequest).Spec.Images[0].Source = ""
			return c.Create(ctx, object, options...)
		},
	}
	err := asked(t, cluster(t, older)).Run(patient(t), v1alpha1.ConditionComplete)
	if promotion.ReasonOf(err) != promotion.ReasonInvalidSpec || !strings.Contains(err.Error(), "dropped spec.images[0].source; upgrade the installed") {
		t.Error(err)
	}
}

func TestWatchesThatBreakAndServersThatDoNotAnswerAreOutlived(t *testing.T) {
	resource := schema.GroupResource{Group: "ci.openshift.io", Resource: v1alpha1.Resource}
	var creations, watches, reads int
	functions := interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			if creations++; creations == 1 {
				return apierrors.NewServerTimeout(resource, "create", 1)
			}
			return c.Create(ctx, object, options...)
		},
		Watch: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) (watch.Interface, error) {
			switch watches++; watches {
			case 1:
				return nil, apierrors.NewForbidden(resource, "job-1", errors.New("roles are not known yet"))
			case 2:
				broken := watch.NewFake()
				go broken.Error(&apierrors.NewResourceExpired("too old").ErrStatus)
				return broken, nil
			default:
				return c.Watch(ctx, list, options...)
			}
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if reads++; reads == 2 {
				return apierrors.NewInternalError(errors.New("etcd is away"))
			}
			return c.Get(ctx, key, object, options...)
		},
	}
	disturbed := cluster(t, functions)
	asked := asked(t, disturbed)
	if err := asked.Ensure(patient(t)); err != nil {
		t.Fatal(err)
	}
	done := asked.Request().DeepCopy()
	done.Status.Phase = v1alpha1.PhasePosted
	done.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionComplete, Status: metav1.ConditionTrue, Reason: "Promoted"}}
	go func() {
		time.Sleep(5 * time.Second)
		if err := disturbed.Status().Update(context.Background(), done); err != nil {
			t.Error(err)
		}
	}()
	if err := asked.Wait(patient(t), v1alpha1.ConditionComplete); err != nil {
		t.Error(err)
	}
	if creations != 2 || watches < 4 {
		t.Errorf("%d creations, %d watches", creations, watches)
	}
}
