package promotion_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"promotion.ci.openshift.io/api/promotion"
	"promotion.ci.openshift.io/api/v1alpha1"
)

// program is a script in the place of promotion-controller.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "promotion-controller")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatTheProgramPrintsIsWhatIsStaged(t *testing.T) {
	given := filepath.Join(t.TempDir(), "given")
	script := `echo "$@" > ` + given + `; cat >> ` + given + `; echo "one  Staged" >&2
cat <<'END'
{"apiVersion":"v1","kind":"List","items":[{"metadata":{"name":"job-1","namespace":"ci"},"spec":{"images":[{"source":"x/ci@` + digest + `","float":"x/ci:f"}]}}]}
END
`
	var log strings.Builder
	stager := promotion.Stager{Program: program(t, script), Arguments: []string{"--registry-config", "auth.json"}, Log: &log}
	staged, err := stager.Stage(context.Background(), request())
	if err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.ImageSpec{Source: "x/ci@" + digest, Float: "x/ci:f"}
	if len(staged) != 1 || staged[0].Name != "job-1" || staged[0].Spec.Images[0] != want {
		t.Errorf("%+v", staged)
	}
	text, err := os.ReadFile(given)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"stage -f - -o json --registry-config auth.json\n", `"kind":"PromotionRequest"`, `"apiVersion":"ci.openshift.io/v1alpha1"`} {
		if !strings.Contains(string(text), part) {
			t.Errorf("no %s in %s", part, text)
		}
	}
	if strings.Contains(string(text), "status") || log.String() != "one  Staged\n" {
		t.Errorf("%s\n%s", text, log.String())
	}
}

func TestAProgramThatFailsSaysWhy(t *testing.T) {
	for script, want := range map[string]string{
		"echo x >&2; echo 'error: requests.yaml: it is wrong' >&2; exit 2": "InvalidSpec: requests.yaml: it is wrong",
		"echo 'error: not all is staged' >&2; exit 1":                      "StageFailed: not all is staged",
		"exit 0":                "what ",
		"echo '{\"items\":[]}'": "printed 0 requests of 1",
	} {
		stager := promotion.Stager{Program: program(t, script)}
		if _, err := stager.Stage(context.Background(), request()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", script, err)
		}
	}
	if _, err := (promotion.Stager{Program: "/nowhere"}).Stage(context.Background(), request()); promotion.ReasonOf(err) != promotion.ReasonStageFailed {
		t.Error(err)
	}
}

func TestACancelledContextTellsTheProgramToEnd(t *testing.T) {
	ended := filepath.Join(t.TempDir(), "ended")
	script := "trap 'touch " + ended + "; exit 1' TERM\necho started >&2\nwhile :; do sleep 0.1; done\n"
	ctx, cancel := context.WithCancel(context.Background())
	stager := promotion.Stager{Program: program(t, script), Log: writer(func() { time.AfterFunc(100*time.Millisecond, cancel) })}
	if _, err := stager.Stage(ctx, request()); promotion.ReasonOf(err) != promotion.ReasonInterrupted {
		t.Error(err)
	}
	if _, err := os.Stat(ended); err != nil {
		t.Error(err)
	}
}

// writer calls a function for all that is written.
type writer func()

func (w writer) Write(text []byte) (int, error) {
	w()
	return len(text), nil
}
