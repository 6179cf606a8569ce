package v1alpha1

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/yaml"
)

// definition is where the CRD is, from this package.
const definition = "../../crds/promotionrequests.yaml"

// part is a part of a CRD's schema.
type part struct {
	Type       string          `json:"type"`
	Format     string          `json:"format"`
	Properties map[string]part `json:"properties"`
	Items      *part           `json:"items"`
	Enum       []any           `json:"enum"`
	Required   []string        `json:"required"`
}

func servedSchema(t *testing.T) part {
	t.Helper()
	text, err := os.ReadFile(definition)
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Group    string `json:"group"`
			Versions []struct {
				Name   string `json:"name"`
				Schema struct {
					OpenAPIV3Schema part `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	for _, version := range crd.Spec.Versions {
		if crd.Spec.Group == SchemeGroupVersion.Group && version.Name == SchemeGroupVersion.Version {
			return version.Schema.OpenAPIV3Schema
		}
	}
	t.Fatalf("%s does not serve %s", definition, SchemeGroupVersion)
	return part{}
}

// kind is the type and format by which the schema calls a Go type.
func kind(of reflect.Type) string {
	if of == reflect.TypeFor[metav1.Time]() {
		return "string date-time"
	}
	switch of.Kind() {
	case reflect.Pointer:
		return kind(of.Elem())
	case reflect.Struct:
		return "object"
	case reflect.Slice:
		return "array"
	case reflect.Bool:
		return "boolean"
	case reflect.Int32, reflect.Int64:
		return "integer " + of.Kind().String()
	default:
		return of.Kind().String()
	}
}

// compare says where a type and its schema are not of the same fields.
func compare(path string, of reflect.Type, served part) []string {
	if of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	if got, want := kind(of), strings.TrimSpace(served.Type+" "+served.Format); got != want {
		return []string{fmt.Sprintf("%s is %s, and %s in the CRD", path, got, want)}
	}
	if of.Kind() == reflect.Slice {
		return compare(path+"[]", of.Elem(), *served.Items)
	}
	if kind(of) != "object" {
		return nil
	}
	var wrong []string
	left := maps.Clone(served.Properties)
	for i := range of.NumField() {
		field := of.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" {
			continue // Embedded: apiVersion and kind.
		}
		property, known := served.Properties[name]
		if !known {
			wrong = append(wrong, fmt.Sprintf("%s.%s is not in the CRD", path, name))
			continue
		}
		delete(left, name)
		if required := slices.Contains(served.Required, name); required == strings.Contains(options, "omit") {
			wrong = append(wrong, fmt.Sprintf("%s.%s: required is %v in the CRD", path, name, required))
		}
		wrong = append(wrong, compare(path+"."+name, field.Type, property)...)
	}
	for name := range left {
		wrong = append(wrong, fmt.Sprintf("%s.%s is missing", path, name))
	}
	return wrong
}

func TestTheTypesHaveTheFieldsOfTheDefinitionAndNoOthers(t *testing.T) {
	served := servedSchema(t)
	if len(served.Properties["spec"].Properties) < 10 || len(served.Properties["status"].Properties) < 10 {
		t.Fatalf("the CRD was not understood: %v", served)
	}
	wrong := compare("spec", reflect.TypeFor[PromotionRequestSpec](), served.Properties["spec"])
	wrong = append(wrong, compare("status", reflect.TypeFor[PromotionRequestStatus](), served.Properties["status"])...)
	if len(wrong) > 0 {
		t.Error(strings.Join(wrong, "\n"))
	}
}

// marked is what a marker says of a field, as the schema has it.
var marked = regexp.MustCompile(`// \+(?:kubebuilder:validation:)?(MinItems|MaxItems|MinLength|MaxLength|Minimum|Maximum|kubebuilder:default)=(\S+)|^\t\w+\s+\S+\s+.json:"(\w+)`)

// markers reads what the markers of a type's fields say, by the fields' names.
func markers(t *testing.T, of string) map[string]map[string]string {
	t.Helper()
	text, err := os.ReadFile("types.go")
	if err != nil {
		t.Fatal(err)
	}
	_, body, found := strings.Cut(string(text), "type "+of+" struct {\n")
	if !found {
		t.Fatalf("there is no type %s", of)
	}
	body, _, _ = strings.Cut(body, "\n}")
	all, said := map[string]map[string]string{}, map[string]string{}
	for _, line := range strings.Split(body, "\n") {
		switch match := marked.FindStringSubmatch(line); {
		case match == nil:
		case match[3] != "":
			all[match[3]], said = said, map[string]string{}
		default:
			name := strings.TrimPrefix(match[1], "kubebuilder:")
			said[strings.ToLower(name[:1])+name[1:]] = match[2]
		}
	}
	return all
}

func TestTheMarkersSayWhatTheDefinitionSays(t *testing.T) {
	text, err := os.ReadFile(definition)
	if err != nil {
		t.Fatal(err)
	}
	var crd map[string]any
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	served, _, err := unstructured.NestedSlice(crd, "spec", "versions")
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for of, path := range map[string][]string{
		"PromotionRequestSpec": {"spec"},
		"ImageSpec":            {"spec", "properties", "images", "items"},
		"SecretRef":            {"spec", "properties", "pushSecret"},
	} {
		path := append([]string{"schema", "openAPIV3Schema", "properties"}, path...)
		for name, said := range markers(t, of) {
			field, _, err := unstructured.NestedMap(served[0].(map[string]any), append(path, "properties", name)...)
			if err != nil {
				t.Fatal(err)
			}
			for rule, value := range said {
				compared++
				got := fmt.Sprint(field[rule])
				if number, ok := field[rule].(float64); ok {
					got = strconv.FormatFloat(number, 'f', -1, 64)
				}
				if got != value {
					t.Errorf("%s.%s: %s is %s in the CRD, %s here", of, name, rule, got, value)
				}
			}
		}
	}
	if compared < 20 {
		t.Errorf("%d markers were compared", compared)
	}
}

func TestTheConstantsAreTheChoicesOfTheDefinition(t *testing.T) {
	spec := servedSchema(t).Properties["spec"].Properties
	for field, wanted := range map[string][]any{
		"latch":     {string(LatchTogether), string(LatchIndependently)},
		"onFailure": {string(OnFailureHold), string(OnFailureRollback)},
		"referrers": {string(ReferrersIgnore), string(ReferrersBestEffort), string(ReferrersRequire)},
		"mode":      {string(ModePromote), string(ModePlan)},
	} {
		if got := spec[field].Enum; !reflect.DeepEqual(got, wanted) {
			t.Errorf("%s: %v in the CRD, %v here", field, got, wanted)
		}
	}
}

// objects are files with objects of the API server: those of testdata, and of the folder that $PROMOTIONREQUESTS names.
func objects(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if folder := os.Getenv("PROMOTIONREQUESTS"); folder != "" {
		fresh, err := filepath.Glob(filepath.Join(folder, "*.json"))
		if err != nil || len(fresh) == 0 {
			t.Fatalf("$PROMOTIONREQUESTS: %v in %s: %v", fresh, folder, err)
		}
		files = append(files, fresh...)
	}
	return files
}

func TestWhatTheControllerWroteIsReadAndWrittenBackWithoutLoss(t *testing.T) {
	files := objects(t)
	if len(files) == 0 {
		t.Fatal("no objects")
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var request PromotionRequest
		if err := yaml.UnmarshalStrict(text, &request); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		again, err := json.Marshal(&request)
		if err != nil {
			t.Fatal(err)
		}
		var before, after any
		if err := json.Unmarshal(text, &before); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(again, &after); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%s: read\n%s\nand wrote\n%s", file, text, again)
		}
	}
}

// shared finds a place where two values have the same memory.
func shared(path string, a, b reflect.Value) string {
	switch a.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if a.IsNil() || a.Kind() == reflect.Slice && a.Len() == 0 {
			return ""
		}
		if a.UnsafePointer() == b.UnsafePointer() {
			return path
		}
	}
	switch a.Kind() {
	case reflect.Pointer:
		if a.Type().Elem() == reflect.TypeFor[metav1.Time]() {
			return "" // Inside is a pointer to a time zone, which is shared by right.
		}
		return shared(path, a.Elem(), b.Elem())
	case reflect.Slice:
		for i := range a.Len() {
			if found := shared(fmt.Sprintf("%s[%d]", path, i), a.Index(i), b.Index(i)); found != "" {
				return found
			}
		}
	case reflect.Struct:
		if a.Type() == reflect.TypeFor[metav1.Time]() {
			return ""
		}
		for i := range a.NumField() {
			if found := shared(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i)); found != "" {
				return found
			}
		}
	}
	return ""
}

func TestACopyIsEqualAndSharesNothing(t *testing.T) {
	var list PromotionRequestList
	randfill.NewWithSeed(1).NilChance(0).NumElements(2, 2).Funcs(
		func(t *metav1.Time, c randfill.Continue) { *t = metav1.Unix(c.Int63n(1<<31), 0) },
		func(f *metav1.FieldsV1, _ randfill.Continue) { f.Raw = []byte("{}") },
	).Fill(&list)
	copied := list.DeepCopyObject()
	if !reflect.DeepEqual(runtime.Object(&list), copied) {
		t.Fatalf("%#v\nis not\n%#v", copied, list)
	}
	if path := shared("list", reflect.ValueOf(&list), reflect.ValueOf(copied)); path != "" {
		t.Errorf("%s is shared", path)
	}
}
