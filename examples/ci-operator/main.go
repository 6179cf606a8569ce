// ci-operator does what a CI job does to have its images promoted: it asks, waits, reports, and cancels if it is ended early.
//
//	ensure ──▶ watch ──▶ Staged or Complete ──▶ references, junit, artifact
//	create,      │
//	or adopt     └─ SIGTERM ──▶ spec.cancel ──▶ Cancelled, or committed and run to its end
//
// It exits with 0 if what it waited for happened, with 1 if not (the last line then is promoting_images:REASON), and with 2 for
// bad arguments.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its streams as arguments: results go to stdout, progress and failures to stderr.
func run(args []string, stdout, stderr io.Writer) int {
	options, err := parse(args, os.Getenv, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "error: %v\n", err)
		return exitUsage
	}
	loading := clientcmd.NewDefaultClientConfigLoadingRules()
	loading.ExplicitPath = options.kubeconfig
	overrides := &clientcmd.ConfigOverrides{}
	overrides.Context.Namespace = options.request.Namespace
	kubeconfig := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(loading, overrides)
	config, err := kubeconfig.ClientConfig()
	if err == nil {
		options.request.Namespace, _, err = kubeconfig.Namespace()
	}
	if err != nil {
		fmt.Fprintf(stderr, "error: --kubeconfig: %v\n", err)
		return exitUsage
	}
	client, err := newClient(config, options.request.Namespace)
	if err != nil {
		fmt.Fprintf(stderr, "error: --kubeconfig: %v\n", err)
		return exitUsage
	}

	job := &job{
		options:  options,
		client:   client,
		log:      log.New(stderr, "", log.LstdFlags|log.LUTC),
		finished: map[string]float64{},
	}
	timed, stop := context.WithTimeoutCause(context.Background(), options.timeout, errTimeout)
	defer stop()
	ctx, release := signal.NotifyContext(timed, syscall.SIGTERM, syscall.SIGINT)
	defer release()
	// Some programs send a signal twice, to the process and to its group: repeats within a second count as one.
	failed := job.run(ctx, func() { time.AfterFunc(time.Second, release) })
	if err := job.report(stdout, failed); err != nil {
		job.log.Printf("error: %v", err)
	}
	if failed != nil {
		job.log.Printf("error: %s", failed.message)
		fmt.Fprintf(stderr, "promoting_images:%s\n", failed.reason)
		return exitFailed
	}
	return exitOK
}
