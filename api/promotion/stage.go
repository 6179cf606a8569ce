package promotion

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	"promotion.ci.openshift.io/api/v1alpha1"
)

// stageGrace is how long the program may take to end when it is told to.
const stageGrace = 40 * time.Second

// Stager copies sources to their floats' repositories, where they can be read and with the job's own credentials: it runs the program
// promotion-controller.
type Stager struct {
	// Program is the path of promotion-controller, or its name on PATH.
	Program string
	// Arguments are added to those of `stage`: --registry-config FILE, for one.
	Arguments []string
	// Log is where the program's progress goes; nil: nowhere.
	Log io.Writer
}

// Stage copies what the requests promote and gives the same requests, each source by digest in its float's repository. Killed and run
// again it ends the same. When the context is cancelled the program is told to end.
func (s Stager) Stage(ctx context.Context, requests ...*v1alpha1.PromotionRequest) ([]*v1alpha1.PromotionRequest, error) {
	var documents bytes.Buffer
	for _, request := range requests {
		request := request.DeepCopy()
		request.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("PromotionRequest"))
		request.Status = v1alpha1.PromotionRequestStatus{}
		// JSON is YAML.
		documents.WriteString("---\n")
		if err := json.NewEncoder(&documents).Encode(request); err != nil {
			return nil, err
		}
	}
	program := exec.CommandContext(ctx, s.Program, append([]string{"stage", "-f", "-", "-o", "json"}, s.Arguments...)...)
	program.Cancel = func() error { return program.Process.Signal(syscall.SIGTERM) }
	program.WaitDelay = stageGrace
	var printed bytes.Buffer
	last := &lastLine{to: s.Log}
	program.Stdin, program.Stdout, program.Stderr = &documents, &printed, last
	if err := program.Run(); err != nil {
		return nil, s.failed(ctx, err, last.text())
	}
	var list struct {
		Items []*v1alpha1.PromotionRequest `json:"items"`
	}
	if err := json.Unmarshal(printed.Bytes(), &list); err != nil {
		return nil, fmt.Errorf("what %s stage printed: %w", s.Program, err)
	}
	if len(list.Items) != len(requests) {
		return nil, fmt.Errorf("%s stage printed %d requests of %d", s.Program, len(list.Items), len(requests))
	}
	return list.Items, nil
}

// failed says why nothing is staged: the program ends with 2 for what it was given, with 1 for what came of it.
func (s Stager) failed(ctx context.Context, err error, last string) error {
	var exit *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &Error{ReasonTimeout, "the sources were not staged in time"}
	case ctx.Err() != nil:
		return &Error{ReasonInterrupted, "the sources are not all staged; run again, it goes on from there"}
	case errors.As(err, &exit) && exit.ExitCode() == 2:
		return &Error{ReasonInvalidSpec, last}
	case errors.As(err, &exit):
		return &Error{ReasonStageFailed, last}
	default:
		return &Error{ReasonStageFailed, err.Error()}
	}
}

// lastLine passes everything on and keeps the last line.
type lastLine struct {
	to   io.Writer
	line []byte
	done bool
}

// lineMax is how much of a line is kept.
const lineMax = 4096

func (l *lastLine) Write(text []byte) (int, error) {
	for _, char := range text {
		if l.done && char != '\n' {
			l.line, l.done = l.line[:0], false
		}
		l.done = l.done || char == '\n'
		if !l.done && len(l.line) < lineMax {
			l.line = append(l.line, char)
		}
	}
	if l.to == nil {
		return len(text), nil
	}
	return l.to.Write(text)
}

func (l *lastLine) text() string {
	return string(bytes.TrimPrefix(l.line, []byte("error: ")))
}
