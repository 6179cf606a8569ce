package promotion

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"promotion.ci.openshift.io/api/v1alpha1"
)

// strict has the API server refuse fields that it does not know.
const strict = client.FieldValidation(metav1.FieldValidationStrict)

// lacking names what was sent and did not come back. What was added does not matter.
func lacking(path string, sent, got any) []string {
	var lost []string
	switch sent := sent.(type) {
	case map[string]any:
		got, _ := got.(map[string]any)
		for name, value := range sent {
			lost = append(lost, lacking(path+"."+name, value, got[name])...)
		}
	case []any:
		got, _ := got.([]any)
		for index, value := range sent {
			var other any
			if index < len(got) {
				other = got[index]
			}
			lost = append(lost, lacking(fmt.Sprintf("%s[%d]", path, index), value, other)...)
		}
	default:
		if !reflect.DeepEqual(sent, got) {
			lost = append(lost, path)
		}
	}
	slices.Sort(lost)
	return lost
}

// asSent is a spec as it is sent.
func asSent(spec v1alpha1.PromotionRequestSpec) map[string]any {
	var fields map[string]any
	text, err := json.Marshal(spec)
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		panic(err) // Strings and numbers are always JSON.
	}
	return fields
}

// difference names the fields in which two specs ask for something else.
func difference(a, b v1alpha1.PromotionRequestSpec) []string {
	for _, spec := range []*v1alpha1.PromotionRequestSpec{&a, &b} {
		spec.Suspend, spec.Cancel, spec.TTLSecondsAfterFinished, spec.Gates = nil, nil, nil, nil
	}
	one, other := asSent(a), asSent(b)
	var names []string
	for name, value := range one {
		if !reflect.DeepEqual(value, other[name]) {
			names = append(names, name)
		}
	}
	for name := range other {
		if _, ok := one[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
