// ci-operator does what a CI job does to have its images promoted: it stages them from where it runs, asks, waits, reports, and
// cancels if it is ended early. All but the flags and the ImageStreams is in the package promotion.
//
//	stage ──▶ ensure ──▶ watch ──▶ Staged or Complete ──▶ references, junit, artifact
//	copies,   create,      │
//	pins      or adopt     └─ SIGTERM ──▶ spec.cancel ──▶ Cancelled, or committed and run to its end
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
	"sigs.k8s.io/controller-runtime/pkg/client"

	"promotion.ci.openshift.io/api/promotion"
	"promotion.ci.openshift.io/api/v1alpha1"
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
	client, err := promotion.NewClient(config)
	if err != nil {
		fmt.Fprintf(stderr, "error: --kubeconfig: %v\n", err)
		return exitUsage
	}

	logger := log.New(stderr, "", log.LstdFlags|log.LUTC)
	timed, stop := context.WithTimeout(context.Background(), options.timeout)
	defer stop()
	ctx, release := signal.NotifyContext(timed, syscall.SIGTERM, syscall.SIGINT)
	defer release()
	// Some programs send a signal twice, to the process and to its group: repeats within a second count as one. A later one ends the
	// program at once.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, release) })
	options.stager.Log = stderr
	asked, failed := promote(ctx, client, options, logger)
	if err := report(asked, options, logger, stdout, failed); err != nil {
		logger.Printf("error: %v", err)
	}
	if failed != nil {
		logger.Printf("error: %v", failed)
		fmt.Fprintf(stderr, "promoting_images:%s\n", promotion.ReasonOf(failed))
		return exitFailed
	}
	return exitOK
}

// promote stages the sources, if it is to, then asks for the promotion and waits.
func promote(ctx context.Context, client client.WithWatch, options *options, logger *log.Logger) (*promotion.Promotion, error) {
	request := options.request
	var failed error
	if options.stager.Program != "" {
		var staged []*v1alpha1.PromotionRequest
		if staged, failed = options.stager.Stage(ctx, request); failed == nil {
			request = staged[0]
		}
	}
	asked := promotion.New(client, request)
	asked.Log, asked.CancelGrace = logger.Printf, options.cancelGrace
	if failed == nil {
		failed = asked.Run(ctx, options.until)
	}
	return asked, failed
}
