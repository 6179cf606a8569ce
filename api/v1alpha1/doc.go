// Package v1alpha1 has the Go types of promotionrequests.ci.openshift.io, v1alpha1.
//
// The definition is crds/promotionrequests.yaml; a test compares it with these types field by field.
//
// A client of these types drops status fields that only a newer definition has when it reads an object: change objects by
// patches, never by an update of what was read.
//
// +k8s:deepcopy-gen=package
// +kubebuilder:object:generate=true
// +groupName=ci.openshift.io
package v1alpha1

//go:generate go run k8s.io/code-generator/cmd/deepcopy-gen@v0.35.4 --output-file zz_generated.deepcopy.go .
